"""Pairs to token ids: the split, the end of a response, what is cut, counted or refused."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, normalizers, pre_tokenizers, processors

from orpo_mlx.data.pairs.load import PreferencePair, load_pairs
from orpo_mlx.data.tokens.encode import BLOCK, encode_pairs
from orpo_mlx.data.tokens.encoder import EncodedPair, Encoder
from tests import tiny
from tests.data.rows import (
    assistant,
    build,
    call,
    decoded,
    lines_of,
    notes_of,
    pair,
    refusal,
    system,
    texts,
    user,
)

NO_SYSTEM = "{%- if messages[0].role == 'system' %}{{ raise_exception('no system') }}{%- endif %}"
# GLM-4's habit: a turn is ended by the token that opens the next one.
OPENERS = (
    "{%- for m in messages %}{{ '<|' + m.role + '|>' + m.content }}"
    "{%- for c in m.tool_calls or [] %}{{ c.function.name ~ c.function.arguments|tojson }}"
    "{%- endfor %}{%- endfor %}{%- if add_generation_prompt %}<|assistant|>{%- endif %}"
)


@pytest.mark.parametrize("wrapped", [False, True], ids=["transformers", "mlx-lm"])
def test_prompt_is_what_generation_sees_and_the_response_ends_with_its_end_token(
    wrapped: bool,
) -> None:
    encoder = build()
    tokenizer = encoder.tokenizer
    if wrapped:
        encoder = Encoder(TokenizerWrapper(tokenizer), encoder.end_ids, True)
    messages = [system("be kind"), user("hello"), assistant("yes?"), user("my card")]
    (row,), report = encode_pairs([pair(messages, location="f:7")], encoder)
    seen = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert row.prompt.tolist() == seen
    assert decoded(encoder, row) == (
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
        "<|im_start|>assistant\nyes?<|im_end|>\n<|im_start|>user\nmy card<|im_end|>\n"
        "<|im_start|>assistant\n",
        "please check<|im_end|>",
        "later<|im_end|>",
    )
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert row.chosen.tolist().index(end) == len(row.chosen) - 1
    assert row.location == "f:7"
    assert (report.pairs, report.kept, lines_of(report)) == (1, 1, [])


def test_generation_is_given_the_same_prompt() -> None:
    encoder = build(NO_SYSTEM + tiny.CHATML)
    messages = [system("be kind"), user("hello")]
    (row,), _ = encode_pairs([pair(messages)], encoder)
    assert encoder.prompt_ids(messages) == row.prompt.tolist()


def test_messages_after_the_first_answer_are_counted() -> None:
    rows = [pair(extra_messages=3), pair(extra_messages=1, location="f:2")]
    assert notes_of(build(), *rows) == ["4 x message after the first answer, cut"]


def test_special_tokens_inside_texts_are_counted() -> None:
    rows = [
        pair("what is <|im_start|>?"),
        pair([system("<|user|>"), user("<|user|> and <|im_start|>")], location="f:2"),
    ]
    template = NO_SYSTEM.replace("raise_exception('no system')", "''") + tiny.CHATML
    assert notes_of(build(template), *rows) == [
        "2 x text that holds <|im_start|>, read as a control token",
        "1 x text that holds <|user|>, read as a control token",
    ]


def test_a_response_that_holds_an_end_token_ends_there_and_is_counted() -> None:
    encoder = build()
    row = pair(chosen="write <|im_end|> to stop", rejected="no<|im_end|>")
    (encoded,), report = encode_pairs([row], encoder)
    assert decoded(encoder, encoded)[1:] == ("write <|im_end|>", "no<|im_end|>")
    assert lines_of(report) == [
        "1 x text that holds <|im_end|>, read as a control token",
        "1 x response that holds an end token, and ends there",
    ]


def test_the_first_end_token_ends_a_response() -> None:
    template = tiny.CHATML + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}"
    both = build(template, ends=("<|im_end|>", "<|endoftext|>"))
    assert texts(both, pair())[1] == "please check<|im_end|>"
    other = build(template, ends=("<|endoftext|>",))
    assert texts(other, pair())[1] == "please check<|im_end|>\n<|endoftext|>"


def test_a_turn_closed_with_nothing_takes_the_token_that_opens_the_next() -> None:
    encoder = build(OPENERS, ends=("<|user|>", "<|tool|>"))
    row = pair(rejected=assistant("", tool_calls=call("weather", city="Rome")))
    assert texts(encoder, row)[1:] == ("please check<|user|>", 'weather{"city": "Rome"}<|tool|>')


def test_an_end_token_that_is_none_of_the_models_is_proposed() -> None:
    encoder = build(ends=("<|endoftext|>",))
    assert refusal(encoder, pair(location="f:9")) == (
        "f:9: the chat template of this base writes no end token after an answer (end tokens of "
        'this model: <|endoftext|>). It ends an answer with "<|im_end|>": name it with '
        '--eos-token "<|im_end|>".'
    )


def test_an_answer_without_any_end_token_is_an_error() -> None:
    assert refusal(build("{% for m in messages %}{{ m.content }}\n{% endfor %}"), pair()) == (
        "f:1: the chat template of this base writes no end token after an answer (end tokens of "
        "this model: <|im_end|>). Name the token that ends a turn with --eos-token TOKEN."
    )


def test_a_base_without_a_template_reads_plain_text_and_its_eos() -> None:
    assert texts(build(None), pair("Q: hello\nA:", " yes", " no")) == (
        "Q: hello\nA:",
        " yes<|im_end|>",
        " no<|im_end|>",
    )


def test_a_base_without_a_template_begins_with_its_bos() -> None:
    encoder = build(None)
    tokenizer = encoder.tokenizer
    tokenizer.bos_token = "<|endoftext|>"
    start = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", start)]
    )
    (row,), _ = encode_pairs([pair()], encoder)
    assert row.prompt.tolist() == tokenizer.encode("hello") == encoder.prompt_ids([user("hello")])
    assert row.prompt[0] == start
    assert start not in row.chosen


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (pair([system("be kind"), user("hello")]), "a conversation needs"),
        (pair([user("hello"), assistant("go")]), "a conversation needs"),
        (pair(tools=[{"name": "weather"}]), "reasoning and tools need"),
        (pair(chosen=assistant("yes", reasoning_content="hm")), "reasoning and tools need"),
    ],
    ids=["system", "prefill", "tools", "reasoning"],
)
def test_a_base_without_a_template_refuses_what_it_cannot_say(
    row: PreferencePair, what: str
) -> None:
    assert refusal(build(None), row) == (
        f"1 row cannot be rendered:\n  f:1: {what} a chat template, and this base has none "
        "(give one with --chat-template FILE)"
    )


def test_rows_that_would_be_other_tokens_as_one_text_are_counted() -> None:
    # Generation begins behind a space, which the answer's first word would take to itself.
    spaced = tiny.CHATML.replace("assistant\n' }}", "assistant\n ' }}")
    spaced = spaced.replace("+ message['content']", "+ ' ' + message['content']")
    rows = [pair(location=f"f:{n}") for n in range(230)]
    assert notes_of(build(spaced), *rows) == [
        "200 x pair of the first 200 that would be other tokens as one text"
    ]
    assert notes_of(build(spaced), pair(chosen=" please", rejected="later")) == [
        "1 x pair of the first 1 that would be other tokens as one text"
    ], "one of the two answers is enough"
    assert notes_of(build(), *rows) == []


def test_a_tokenizer_that_marks_the_start_of_a_text_puts_no_mark_before_a_response() -> None:
    encoder = build()
    backend = encoder.tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Prepend(" ")  # Llama 2 and the first Mistrals do this
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken(t, normalized=False) for t in ("<|im_start|>",)]}
    )
    assert encoder.tokenizer.decode(encoder.ids("please")) == " please"
    _, chosen, rejected = texts(encoder, pair())
    assert (chosen, rejected) == ("please check<|im_end|>", "later<|im_end|>")


def lengths(row: EncodedPair) -> tuple[int, int, int]:
    return len(row.prompt), len(row.chosen), len(row.rejected)


@pytest.fixture
def long_row() -> tuple[PreferencePair, tuple[int, int, int]]:
    row = pair("help " * 40, "please " * 20, "later " * 10)
    (encoded,), _ = encode_pairs([row], build())
    assert lengths(encoded) == (57, 24, 14), "the sizes that the cases below are about"
    return row, lengths(encoded)


@pytest.mark.parametrize(
    ("limit", "prompt_limit", "expected", "notes"),
    [
        (81, None, (57, 24, 14), []),
        (81, 5, (57, 24, 14), []),
        (80, None, (56, 24, 14), ["prompt cut at its front"]),
        (80, 60, (57, 23, 14), ["response cut at its end"]),
        (40, None, (20, 20, 14), ["prompt cut at its front", "response cut at its end"]),
        (40, 10, (16, 24, 14), ["prompt cut at its front"]),
        (16, 6, (6, 10, 10), ["response cut at its end"] * 2 + ["prompt cut at its front"]),
    ],
)
def test_prompts_are_cut_at_their_front_first_then_responses_at_their_end(
    long_row: tuple[PreferencePair, Any],
    limit: int,
    prompt_limit: int | None,
    expected: tuple[int, int, int],
    notes: list[str],
) -> None:
    row, _ = long_row
    (whole,), _ = encode_pairs([row], build())
    encoder = build(max_seq_length=limit, max_prompt_length=prompt_limit)
    (cut,), report = encode_pairs([row], encoder)
    assert lengths(cut) == expected
    assert cut.prompt.tolist() == whole.prompt[-expected[0] :].tolist()
    assert cut.chosen.tolist() == whole.chosen[: expected[1]].tolist()
    assert cut.rejected.tolist() == whole.rejected[: expected[2]].tolist()
    assert report.notes == Counter(f"{note} (--max-seq-length {limit})" for note in notes)


def test_a_cut_prompt_keeps_its_bos() -> None:
    encoder = build("{{ bos_token }}" + tiny.CHATML, max_seq_length=16)
    encoder.tokenizer.bos_token = "<|endoftext|>"
    (cut,), _ = encode_pairs([pair("help " * 40, "please", "later")], encoder)
    whole = encoder.prompt_ids([user("help " * 40)])
    assert len(cut.prompt) + max(len(cut.chosen), len(cut.rejected)) == 16
    assert cut.prompt.tolist() == whole[:1] + whole[1 - len(cut.prompt) :]


def test_pairs_of_which_too_little_is_left_are_dropped_and_counted() -> None:
    rows = [
        pair("help", "yes", "no"),
        pair("help", "please check", "please restart", location="f:2"),
        pair("help", " please ", "please", location="f:3"),
    ]
    trim = tiny.CHATML.replace("message['content']", "message['content']|trim")
    encoder = build(trim, max_seq_length=2 * len(build().prompt_ids([user("help")])))
    encoded, report = encode_pairs(rows, encoder)
    assert [row.location for row in encoded] == ["f:1", "f:2"]
    assert lines_of(report) == [
        "1 x pair left out: chosen and rejected are the same after rendering and truncation"
    ]
    encoder = build(trim, max_seq_length=8, max_prompt_length=10)
    encoded, report = encode_pairs(rows, encoder)
    assert (encoded, report.kept, report.pairs) == ([], 0, 3)
    assert (
        lines_of(report)[0] == "3 x pair left out: no token of the prompt or of a response is left"
    )


def test_progress_is_reported_block_by_block() -> None:
    seen: list[int] = []
    encode_pairs([pair(location=f"f:{n}") for n in range(BLOCK + 1)], build(), seen.append)
    assert seen == [BLOCK, BLOCK + 1]


def test_nothing_is_reported_of_the_bundled_pairs() -> None:
    samples = Path(__file__).parents[3] / "orpo_mlx" / "data" / "samples"
    pairs = load_pairs(samples, splits=["valid"])
    encoder = build()
    encoded, report = encode_pairs(pairs, encoder)
    assert lines_of(report) == []
    for row, source in zip(encoded, pairs, strict=True):
        prompt, chosen, rejected = decoded(encoder, row)
        asked = f"<|im_start|>user\n{source.prompt}<|im_end|>\n<|im_start|>assistant\n"
        assert prompt == asked
        assert chosen == source.chosen["content"] + "<|im_end|>"
        assert rejected == source.rejected["content"] + "<|im_end|>"
