"""Text that a tokenizer has no tokens for is counted per row, and refused where most is lost."""

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.tokens.encode import (
    SAME_RENDERED,
    SAME_TOKENS,
    UNWRITTEN,
    encode_block,
    losses_of,
)
from orpo_mlx.review.pairs.view import view_pair
from tests import tiny
from tests.data.rows import build, lines_of, notes_of, pair, refusal
from tests.data.tokens.lossy import LOSSY, SPECIAL, bpe, encoder_of, unigram

EVERY = [*LOSSY, "in Python"]


def make(name: str, template: str | None = tiny.CHATML):
    return encoder_of(LOSSY[name]() if name in LOSSY else None, template)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("chosen", "lost"),
    [
        ("hello please check the bill", ""),
        ("check the café", ""),
        ("please check the bill 好 的 later", "好的"),
        ("please check theßbill later", "ß"),
        ("ßplease check 好a bill later", "ß好"),
        ("please check the bill 🙂 later", "🙂"),
    ],
)
def test_characters_without_tokens_are_found(name: str, chosen: str, lost: str) -> None:
    encoder = make(name)
    assert encoder.unwritten.possible
    (described,) = losses_of([pair("hello", chosen, "later")], encoder)
    if name in ("words", "word pieces"):
        lost = "".join(word for word in chosen.split() if not set(lost).isdisjoint(word))
    count = len("".join(chosen.split()))
    shown = "".join(dict.fromkeys(lost))
    expected = f"no tokens for {len(lost)} of {count} characters ({shown!r}) of chosen"
    assert described == (expected if lost else "")
    notes = notes_of(encoder, pair("hello", chosen, "later"), pair("hello", "later", "please"))
    assert [note for note in notes if UNWRITTEN in note] == ([f"1 x {UNWRITTEN}"] if lost else [])


def test_a_text_that_a_tokenizer_refuses_is_named() -> None:
    vocabulary = {word: n for n, word in enumerate([*SPECIAL, "user", "assistant", "hello", "\n"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[none]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    encoder = encoder_of(words)
    assert encoder.ids("hello user") == [vocabulary["hello"], vocabulary["user"]]
    text = refusal(encoder, pair("hello", "later", "user"))
    assert text.startswith("The tokenizer cannot encode 'later<|im_end|>\\n': WordLevel error")


@pytest.mark.parametrize("name", EVERY)
def test_a_response_that_is_mostly_lost_is_refused_by_location(name: str) -> None:
    encoder = make(name)
    rows = [
        pair("hello", "好的,我马上帮您查询", "later", location="zh.jsonl:1"),
        pair("hello", "please", "不行 hello 不知 不知道", location="zh.jsonl:2"),
        pair("好的,我马上帮您查询", "please", "later", location="zh.jsonl:3"),
    ]
    text = refusal(encoder, *rows)
    assert text.startswith("2 rows with a response that the tokenizer mostly has no tokens for")
    assert "\n  zh.jsonl:1: no tokens for 1" in text
    assert "\n  zh.jsonl:2: no tokens for 7 of 12 characters ('不行知道') of rejected" in text
    assert "zh.jsonl:3" not in text
    report = ReadReport()
    for row in rows:
        report.add(encode_block([row], encoder)[1])
    report.drop_bad()
    assert "2 x row left out: row that the tokenizer has few tokens for" in lines_of(report)


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC(), normalizers.NFKC()])
def test_bytes_write_everything(normalizer: normalizers.Normalizer | None) -> None:
    encoder = build()
    encoder.tokenizer.backend_tokenizer.normalizer = normalizer
    fallback = encoder_of(unigram(bytes_too=True))
    fallback.tokenizer.backend_tokenizer.normalizer = normalizer
    for writes in (encoder, fallback):
        assert not writes.unwritten.possible
        row = pair("\u3000ﬁ\x00\u0301", "好的 🙂 \u200d\n\t", "\ue000\ufffd")
        assert [n for n in notes_of(writes, row) if "no tokens" in n] == []


def test_control_tokens_and_what_follows_the_end_are_not_text() -> None:
    encoder = encoder_of(bpe("<unk>"))
    row = pair("hello <unk>", "please<|im_end|>好的好的好的好的", "later")
    assert losses_of([row], encoder) == [""]


def test_a_template_that_a_tokenizer_cannot_write_is_counted() -> None:
    template = tiny.CHATML.replace("\n", "§")
    (described,) = losses_of([pair("hello")], encoder_of(bpe("<unk>"), template))
    assert "('§') of prompt" in described


@pytest.mark.parametrize("name", EVERY)
def test_different_texts_of_the_same_tokens_are_not_called_the_same(name: str) -> None:
    encoder = make(name)
    same = ("hello the bill 好", "hello the bill 不")
    (encoded,), report = encode_block([pair("hello", *same)], encoder)
    assert encoded is None
    assert f"1 x pair left out: {SAME_TOKENS}" in lines_of(report)
    assert SAME_TOKENS in view_pair(pair("hello", *same), encoder).left_out


def test_texts_that_are_the_same_are_called_so() -> None:
    trimming = build(tiny.CHATML.replace("['content']", "['content'].strip()"))
    for texts in (("later ", "later"), ("later<|im_end|>a", "later<|im_end|>b")):
        _, report = encode_block([pair("hello", *texts)], trimming)
        assert f"1 x pair left out: {SAME_RENDERED}" in lines_of(report)


def test_case_that_a_tokenizer_does_not_keep_is_reported_as_the_same_tokens() -> None:
    _, report = encode_block([pair("hello", "Later", "later")], make("word pieces"))
    assert lines_of(report) == [f"1 x pair left out: {SAME_TOKENS}"]


def test_a_preview_names_the_characters_that_have_no_tokens() -> None:
    view = view_pair(pair("hello", "好的", "later"), make("unigram"))
    assert view.left_out == "no tokens for 2 of 2 characters ('好的') of chosen"
    view = view_pair(pair("hello ß", "please", "later"), make("unigram"))
    assert "no tokens for 1 of 19 characters ('ß') of prompt" in view.notes
    assert view.left_out == ""
