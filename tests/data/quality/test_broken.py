import pytest

from orpo_mlx.data.pairs.messages import Message
from orpo_mlx.data.quality.broken import damage, find_broken, turn_fault
from orpo_mlx.data.quality.thresholds import build_thresholds
from tests.data.quality.rows import LONG, named, pair, rows

DEFAULTS = build_thresholds()


def turns(*roles: str) -> list[Message]:
    return [{"role": role, "content": f"{role} says {i}"} for i, role in enumerate(roles)]


def test_a_sound_row_is_not_named() -> None:
    assert find_broken(rows(pair()), DEFAULTS) == []


def test_empty_answers_are_named_whatever_they_are_empty_of() -> None:
    data = rows(pair(chosen=" \n"), pair(rejected="\u200b"), pair(prompt=""), pair(chosen="?"))
    assert named(find_broken(data, DEFAULTS), "empty") == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"]


def test_equal_and_nearly_equal_are_distinguished() -> None:
    data = rows(pair(chosen="A b.\n", rejected="A b."), pair(chosen="A b!", rejected="a  b"))
    findings = find_broken(data, DEFAULTS)
    assert (named(findings, "equal"), named(findings, "near_equal")) == (
        ["a.jsonl:1"],
        ["a.jsonl:2"],
    )


def test_an_answer_that_repeats_the_question_is_named_from_the_threshold_on() -> None:
    data = rows(pair(chosen=f"{LONG} Use vinegar."), pair("Tea or milk?", "Tea or milk? Tea."))
    assert named(find_broken(data, DEFAULTS), "echo") == ["a.jsonl:1"]
    lower = build_thresholds({"echo": 5})
    assert named(find_broken(data, lower), "echo") == ["a.jsonl:1", "a.jsonl:2"]


@pytest.mark.parametrize(
    "text",
    ["Yes.<|im_end|>", "Yes.\n\nHuman: And?", "[INST] Yes.", "Yes. </s>", "### Response:\nYes.",
     "<start_of_turn>model\nYes.", "Assistant: Yes.", "<｜end▁of▁sentence｜>", "USER: no"],
)  # fmt: skip
def test_markers_of_templates_are_seen(text: str) -> None:
    assert named(find_broken(rows(pair(rejected=text)), DEFAULTS), "markers") == ["a.jsonl:1"]


@pytest.mark.parametrize(
    "text",
    [
        "Use <s>old</s> and <b>new</b> in HTML.",
        "## Response times\nShort.",
        "a <| b |> c",
        "Ask the assistant: she knows.",
        "#include <stdio.h>",
    ],
)
def test_text_that_looks_a_little_like_a_marker_is_none(text: str) -> None:
    assert find_broken(rows(pair(rejected=text)), DEFAULTS) == []


def test_text_that_was_rendered_before_may_end_with_its_marker() -> None:
    chosen, rejected = "Yes.<|im_end|>", "No.<|im_end|>\nmore"
    raw = pair("<|im_start|>user\nHi<|im_end|>", chosen, "No.<|im_end|>\n", raw=True)
    cut = pair("<|im_start|>user\nHi<|im_end|>", chosen, rejected, raw=True)
    assert named(find_broken(rows(raw, cut), DEFAULTS), "markers") == ["a.jsonl:2"]


@pytest.mark.parametrize(
    ("roles", "fault"),
    [
        (("user", "user"), "two user messages in a row"),
        (("user", "assistant", "assistant", "user"), "two assistant messages in a row"),
        (("assistant", "user"), "the conversation begins with assistant"),
        (("system",), "the conversation has no user message"),
        (("user", "system"), "a system message follows other messages"),
        (
            ("user", "assistant", "tool", "user"),
            "the user speaks before a tool's result is answered",
        ),
        (("system", "developer", "user"), ""),
        (("user", "assistant", "user", "assistant"), ""),
        (("user", "assistant", "tool", "tool", "assistant", "user"), ""),
    ],
)
def test_turns_out_of_order(roles: tuple[str, ...], fault: str) -> None:
    assert turn_fault(pair(turns(*roles))) == fault


@pytest.mark.parametrize(
    "text",
    ["GrÃ¶ÃŸe zÃ¤hlt", "donâ€™t", "cafÃ©", "lost \ufffd here", "ä½ å¥½ä¸–ç•Œ", "naÃ¯ve 你好"],
)
def test_damage_by_a_wrong_encoding_is_seen(text: str) -> None:
    assert damage(text)


@pytest.mark.parametrize("before", [0, 30, 3_000], ids=["start", "near", "middle"])
@pytest.mark.parametrize("after", [0, 3_000], ids=["end", "more"])
@pytest.mark.parametrize("word", ["fiancé", "don’t", "Größe", "世界", "‘quoted’"])
def test_the_excerpt_shows_the_damage_wherever_it_is(before: int, after: int, word: str) -> None:
    sound = "the bill of May is under orders and then bills " * 100
    text = f"{sound[:before]} {word} {sound[:after]}".strip()
    wrong = text.replace(word, mojibake(word))
    seen, _, repaired = damage(wrong).partition(" should be ")
    assert mojibake(word) in seen and word not in seen
    assert word in repaired
    assert len(seen) + len(repaired) < 150
    (finding,) = find_broken(rows(pair(prompt=wrong)), DEFAULTS)
    assert finding.examples[0].detail == f"prompt: {seen} should be {repaired}"


def mojibake(text: str) -> str:
    """UTF-8 read as Windows-1252, as browsers read it: bytes that it leaves out are controls."""
    return "".join(
        bytes([byte]).decode("cp1252" if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else "latin-1")
        for byte in text.encode()
    )


def test_lost_characters_are_shown_wherever_they_are() -> None:
    text = "the bill of May " * 200
    assert "lost \ufffd here" in damage(f"{text}lost \ufffd here {text}")


@pytest.mark.parametrize(
    "text",
    ["Größe zählt", "don’t", "café – naïve", "你好世界", "Ångström Ærø", "привет", "5 × 3 ± 1 §",
     "ÃO em maiúsculas: NÃO", "Â", "🎉 ¡Olé! ¿Qué?", "Ça va, Zoë?"],
)  # fmt: skip
def test_true_texts_are_not_damaged(text: str) -> None:
    assert damage(text) == ""
