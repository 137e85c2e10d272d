"""The view of a pair holds the model's own ids, with the role of each, and shows their text."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from orpo_mlx.data.pairs.load import PreferencePair, load_pairs
from orpo_mlx.data.tokens.encode import encode_block, encode_pairs
from orpo_mlx.review.pairs.view import PairView, Span, TokenReader, view_messages, view_pair
from tests.data.rows import assistant, build, call, pair, system, user

FIXTURES = sorted((Path(__file__).parents[2] / "data" / "fixtures").glob("*.jsonl"))
TEXT = "Grüße 你好 👩‍👩‍👧 naïve\n\n  x\t"
PAIRS = [
    pair("hello"),
    pair([system(TEXT), user("hi"), assistant("yes?"), user(TEXT)], TEXT, "no " + TEXT),
    pair("what is <|im_start|>?", "it opens <|user|> turns", "no"),
    pair([user("hello"), assistant("please")], assistant(" check it"), assistant(" wait")),
]


def kept_ids(spans: tuple[Span, ...]) -> list[int]:
    return [i for span in spans if span.role != "cut" for i in span.ids]


def shown(spans: tuple[Span, ...], *roles: str) -> str:
    return "".join(span.text for span in spans if span.role in roles)


def marked(spans: tuple[Span, ...], mark: str) -> list[str]:
    return [span.text for span in spans if span.mark == mark]


@pytest.mark.parametrize("limit", [2048, 90, 60, 40, 25, 12])
@pytest.mark.parametrize("row", PAIRS, ids=range(len(PAIRS)))
def test_spans_that_are_not_cut_hold_the_ids_that_the_model_gets(
    row: PreferencePair, limit: int
) -> None:
    encoder = build(max_seq_length=limit)
    view = view_pair(row, encoder)
    encoded, _ = encode_pairs([row], encoder)
    if not encoded:
        assert view.left_out
        assert [kept_ids(part) for part in view.parts.values()] == [[], [], []]
        return
    for spans, ids in zip(view.parts.values(), encoded[0][:3], strict=True):
        assert kept_ids(spans) == ids.tolist()
    counts = view.tokens
    assert [counts[name] for name in view.parts] == [len(ids) for ids in encoded[0][:3]]


@pytest.mark.parametrize("limit", [2048, 60])
def test_pairs_of_public_sets_are_shown_with_the_ids_that_the_model_gets(limit: int) -> None:
    rows = [row for file in FIXTURES for row in load_pairs(file)]
    encoder = build(max_seq_length=limit)
    encoded, report = encode_block(rows, encoder)
    assert len(rows) > 80
    assert len(report.refused) < len(rows) / 4
    for row, ids_of_row in zip(rows, encoded, strict=True):
        view = view_pair(row, encoder)
        ids = [kept_ids(spans) for spans in view.parts.values()]
        assert ids == (
            [part.tolist() for part in ids_of_row[:3]] if ids_of_row else [[], [], []]
        ), row.location
        assert bool(view.left_out) == (ids_of_row is None)


@pytest.mark.parametrize("limit", [2048, 40])
def test_all_spans_together_are_the_uncut_pair(limit: int) -> None:
    encoder = build(max_seq_length=limit)
    whole = view_pair(PAIRS[1], build())
    view = view_pair(PAIRS[1], encoder)
    for name, spans in view.parts.items():
        ids = [i for span in spans for i in span.ids]
        assert ids == kept_ids(whole.parts[name])
        assert ids == encoder.ids(shown(whole.parts[name], "prompt", "chosen", "rejected"))


def test_the_front_of_a_prompt_and_the_ends_of_responses_are_cut() -> None:
    encoder = build(max_seq_length=16, max_prompt_length=8)
    view = view_pair(pair("the router is broken " * 6, "please check the card " * 4), encoder)
    assert {span.role for span in view.prompt[:4]} == {"cut"}
    assert {span.role for span in view.prompt[4:]} == {"prompt"}
    assert len(view.prompt) == 6
    assert view.prompt[0].role == "cut"
    assert view.prompt[-1].role == "prompt"
    assert [span.role for span in view.chosen] == ["chosen", "cut", "cut"]
    assert [span.role for span in view.rejected] == ["rejected", "rejected"]
    assert view.tokens["prompt"] + view.tokens["chosen"] == 16
    assert view.notes == (
        "prompt cut at its front (--max-seq-length 16)",
        "response cut at its end (--max-seq-length 16)",
    )


def test_a_prompt_that_loses_its_front_keeps_its_bos() -> None:
    template = "<|endoftext|>{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    encoder = build(template, max_seq_length=12)
    encoder.tokenizer.bos_token = "<|endoftext|>"
    row = pair("hello router " * 20)
    (encoded,), _ = encode_pairs([row], encoder)
    view = view_pair(row, encoder)
    assert [span.role for span in view.prompt] == ["prompt", "cut", "prompt", "prompt"]
    assert view.prompt[0].text == "<|endoftext|>"
    assert kept_ids(view.prompt) == encoded.prompt.tolist()


def test_control_tokens_are_spans_of_their_own_and_those_of_a_text_are_marked() -> None:
    view = view_pair(PAIRS[2], build())
    assert marked(view.prompt, "special") == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    assert marked(view.prompt, "text") == ["<|im_start|>"]
    assert marked(view.chosen, "text") == ["<|user|>"]
    assert marked(view.chosen, "special") == ["<|im_end|>"]
    assert marked(view.rejected, "text") == []
    assert all(len(span.ids) == 1 for part in view.parts.values() for span in part if span.mark)
    assert "text that holds <|user|>, read as a control token" in view.notes


def test_what_follows_an_end_token_in_an_answer_is_cut() -> None:
    view = view_pair(pair("hello", "please<|im_end|> wait", "later"), build())
    assert [(span.text, span.role, span.mark) for span in view.chosen] == [
        ("please", "chosen", ""),
        ("<|im_end|>", "chosen", "text"),
        (" wait", "cut", ""),
        ("<|im_end|>", "cut", "special"),
        ("\n", "cut", ""),
    ]
    assert [span.role for span in view.rejected] == ["rejected", "rejected"]
    (encoded,), _ = encode_pairs([pair("hello", "please<|im_end|> wait", "later")], build())
    assert kept_ids(view.chosen) == encoded.chosen.tolist()


def test_text_is_whole_however_many_tokens_make_a_character() -> None:
    encoder = build()
    (span,) = TokenReader(encoder.tokenizer).spans([(encoder.ids(TEXT), "prompt")])
    assert span.text == TEXT
    assert list(span.ids) == encoder.ids(TEXT)


def test_a_character_that_is_cut_in_half_is_shown_as_one_that_is_broken() -> None:
    encoder = build()
    ids = encoder.ids("a你b")
    assert len(ids) == 5
    spans = list(TokenReader(encoder.tokenizer).spans([(ids[:2], "prompt"), (ids[2:], "cut")]))
    assert [(span.text[0], span.ids) for span in spans] == [
        ("a", tuple(ids[:2])),
        ("\ufffd", tuple(ids[2:])),
    ]
    assert spans[1].text.endswith("b")


def test_spaces_before_words_are_kept_where_a_tokenizer_drops_the_first() -> None:
    words = ["<unk>", "</s>", "▁", "▁hello", "▁you", "!", "ö"]
    backend = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], unk_token="<unk>"))
    backend.normalizer = normalizers.Prepend("▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    spans = list(TokenReader(tokenizer).spans([([3, 4, 5, 1, 4], "prompt"), ([4], "cut")]))
    assert [span.text for span in spans] == ["hello you!", "</s>", " you", "you"]


def test_a_row_that_the_template_refuses_is_shown_as_it_is_with_the_reason() -> None:
    encoder = build("{{ raise_exception('no') }}")
    view = view_pair(pair("hello"), encoder)
    assert view.left_out == "the template refuses it: no"
    assert view.prompt == (Span("user", "prompt", "speaker"), Span("hello", "prompt"))


def test_a_pair_that_ends_up_the_same_is_left_out_with_a_reason() -> None:
    view = view_pair(
        pair("hello", "please check the a", "please check the b"), build(max_seq_length=9)
    )
    assert view.left_out == "chosen and rejected are the same after rendering and truncation"
    assert {span.role for part in view.parts.values() for span in part} == {"cut"}


def test_a_pair_already_rendered_is_shown_as_it_is() -> None:
    row = pair(
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
        "yes<|im_end|>",
        "no<|im_end|>",
        raw=True,
    )
    view = view_pair(row, build())
    assert shown(view.prompt, "prompt") == row.prompt
    assert marked(view.prompt, "text") == []
    assert len(marked(view.prompt, "special")) == 3


def test_messages_are_shown_with_speakers_reasoning_calls_and_tools() -> None:
    tools = [{"type": "function", "function": {"name": "find", "parameters": {}}}]
    row = pair(
        [system("be kind"), user("where?")],
        assistant("", tool_calls=call("find", location="Köln")),
        assistant("no idea", reasoning_content="hm"),
        tools=tools,
    )
    view = view_messages(row)
    assert [span[:3:2] for span in view.prompt] == [
        ("tools", "speaker"),
        ('[{"type": "function", "function": {"name": "find", "parameters": {}}}]', ""),
        ("system", "speaker"),
        ("be kind", ""),
        ("user", "speaker"),
        ("where?", ""),
    ]
    assert [span.text for span in view.chosen] == [
        "assistant, tool_calls",
        '[{"type": "function", "function": {"name": "find", "arguments": {"location": "Köln"}}}]',
    ]
    assert [span.text for span in view.rejected] == [
        "assistant",
        "no idea",
        "assistant, reasoning_content",
        "hm",
    ]
    assert view.tokens == {"prompt": 0, "chosen": 0, "rejected": 0, "cut": 0}


def test_a_weight_is_shown_with_its_pair() -> None:
    row = pair()._replace(weight=0.5)
    assert view_messages(row).notes == ("weight 0.5",)
    assert "weight 0.5" in view_pair(row, build()).notes
    assert view_messages(pair()).notes == ()


def test_a_view_is_plain_data() -> None:
    facts = view_pair(PAIRS[0], build()).as_dict()
    assert list(facts) == [
        "place",
        "prompt",
        "chosen",
        "rejected",
        "notes",
        "left_out",
        "tokens",
    ]
    assert facts["chosen"][-1] == {
        "text": "<|im_end|>",
        "role": "chosen",
        "mark": "special",
        "ids": (2,),
    }
    assert isinstance(view_pair(PAIRS[0], build()), PairView)
