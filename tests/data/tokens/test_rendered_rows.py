"""Rows that came with a template's markers begin as the template's own prompts do."""

from typing import Any

import pytest
from tokenizers import processors

from orpo_mlx.data.pairs.load import PreferencePair
from orpo_mlx.data.tokens.encode import encode_pairs
from orpo_mlx.data.tokens.encoder import Encoder
from tests import tiny
from tests.data.rows import assistant, build, decoded, lines_of, pair, user

BOS = "<|endoftext|>"
AS_IT_IS = "1 x pair that came with its template's markers, used as it is"
ADDED = f"1 x rendered prompt without the start token {BOS}, which was added"
# GLM-4's: two control tokens, neither of them a BOS, before the first turn.
NO_BOS = (
    "<|tool|>{% for m in messages %}{{ '<|user|>' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|user|>' }}{% endif %}"
)


def with_bos(template: str | None, **settings: int) -> Encoder:
    encoder = build(template, **settings)
    tokenizer = encoder.tokenizer
    tokenizer.bos_token = BOS
    if template is None:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.bos_token_id)]
        )
    return encoder


def rendered(prompt: str) -> PreferencePair:
    return pair(prompt, "please check<|im_end|>\n", "later<|im_end|>\n", raw=True)


def chatml(*messages: str) -> str:
    turns = [
        f"<|im_start|>{'assistant' if n % 2 else 'user'}\n{text}<|im_end|>\n"
        for n, text in enumerate(messages)
    ]
    return "".join(turns) + "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "template",
    ["{{ bos_token }}" + tiny.CHATML, BOS + tiny.CHATML, "{{- bos_token }}\n" + tiny.CHATML],
    ids=["variable", "literal", "line"],
)
@pytest.mark.parametrize("texts", [("my bill",), ("hello", "yes?", "my bill")], ids=len)
def test_the_start_token_of_the_templates_own_prompt_is_put_before_it(
    template: str, texts: tuple[str, ...]
) -> None:
    encoder = with_bos(template)
    roles = (user, assistant, user)
    messages = [role(text) for role, text in zip(roles, texts, strict=False)]
    own = encoder.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    text = encoder.tokenizer.decode(own)
    for prompt, notes in ((text, [AS_IT_IS]), (text.removeprefix(BOS), [AS_IT_IS, ADDED])):
        (row,), report = encode_pairs([rendered(prompt)], encoder)
        assert row.prompt.tolist() == own
        assert decoded(encoder, row)[1:] == ("please check<|im_end|>", "later<|im_end|>")
        assert sorted(lines_of(report)) == sorted(notes)
        assert encoder.prompt_ids_of(rendered(prompt)) == own


@pytest.mark.parametrize("prompt", [chatml("my bill"), [user(chatml("my bill"))]], ids=type)
def test_a_rendered_prompt_that_is_rendered_once_more_is_counted(prompt: Any) -> None:
    (row,), report = encode_pairs([pair(prompt)], with_bos(tiny.CHATML))
    assert decoded(build(), row)[0].count("<|im_start|>assistant") == 2
    assert "1 x prompt with a template's markers, rendered once more" in lines_of(report)
    _, report = encode_pairs([pair("what is <|im_start|>?")], with_bos(tiny.CHATML))
    assert not [line for line in lines_of(report) if "once more" in line]


def test_a_base_without_a_template_begins_rendered_prompts_as_it_begins_texts() -> None:
    encoder = with_bos(None)
    (row,), report = encode_pairs([rendered("Q: my bill\nA:")], encoder)
    assert row.prompt.tolist() == encoder.tokenizer.encode("Q: my bill\nA:")
    assert ADDED in lines_of(report)


@pytest.mark.parametrize(
    ("template", "start"),
    [
        (tiny.CHATML, ""),
        ("{{ bos_token }}" + tiny.CHATML, BOS),
        ("{{ bos_token }}" + tiny.CHATML, f" \n{BOS}"),
    ],
    ids=["none", "there", "after space"],
)
def test_a_start_token_that_is_there_or_that_the_template_does_not_write_is_left(
    template: str, start: str
) -> None:
    encoder = with_bos(template)
    prompt = start + chatml("my bill")
    (row,), report = encode_pairs([rendered(prompt)], encoder)
    assert decoded(encoder, row)[0] == prompt
    assert lines_of(report) == [AS_IT_IS]


def test_another_control_token_that_is_missing_is_counted() -> None:
    encoder = build(NO_BOS)
    lacks = rendered("<|user|>my bill<|im_end|><|user|>")
    (row,), report = encode_pairs([lacks], encoder)
    assert decoded(encoder, row)[0] == lacks.prompt
    assert lines_of(report) == [
        AS_IT_IS,
        "1 x rendered prompt without <|tool|>, with which the template's prompts begin",
    ]
    whole = rendered(f"<|tool|>{lacks.prompt}")
    assert lines_of(encode_pairs([whole], encoder)[1]) == [AS_IT_IS]


def test_a_prompt_that_is_cut_at_its_front_keeps_the_start_token_that_was_added() -> None:
    encoder = with_bos("{{ bos_token }}" + tiny.CHATML, max_seq_length=16)
    (row,), _ = encode_pairs([rendered(chatml("my bill is lost " * 9))], encoder)
    assert row.prompt[0] == encoder.tokenizer.bos_token_id
    assert row.longest == 16
