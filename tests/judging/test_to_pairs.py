"""Pairs of votes in their file, and the way of answers to token ids."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from orpo_mlx.data.pairs.load import load_pairs
from orpo_mlx.data.tokens.encode import encode_pairs
from orpo_mlx.errors import OrpoError
from orpo_mlx.judging.answers import SampledAnswer, append_answers
from orpo_mlx.judging.to_pairs import PAIRS, write_pairs
from orpo_mlx.judging.votes import EditedAnswer, Vote, append_votes
from tests.data.rows import build
from tests.data.tokens.test_reasoning import BLOCK, CHANNEL, IN_PARTS, SPLITTER
from tests.judging.sessions import answer, opened, several, two_models, vote, votes_on

A, B, C = (answer(text, number=n) for n, text in enumerate(("One.", "Two.", "Three.")))


@pytest.mark.parametrize(
    ("template", "written"),
    [
        (CHANNEL, "[analysis]{thought}[final]{text}<|im_end|>"),
        (SPLITTER, "<think>\n{thought}\n</think>\n\n{text}<|im_end|>"),
        (BLOCK, "{thought}\n</think>\n\n{text}<|im_end|>"),
        (IN_PARTS, "[THINK]{thought}[/THINK]{text}<|im_end|>"),
    ],
    ids=["channel", "splitter", "block", "parts"],
)
def test_answers_come_through_votes_to_the_ids_that_they_were_generated_as(
    tmp_path: Path, template: str, written: str
) -> None:
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    answers = [
        answer(text, number=n, thought=thought, prompt=prompt, id=str(n))
        for n, (text, thought) in enumerate((("Four.", "Two pairs."), ("Nine of us.", "Hard.")))
    ]
    with opened(tmp_path, answers) as session:
        (item,) = session.facts.items
        session.vote("you", "v", item.id, "first" if item.first == "0" else "second")
        write_pairs(session.folder)
    (pair,) = load_pairs(session.folder / PAIRS)
    encoder = build(template, thinking=True)
    (encoded,), report = encode_pairs([pair], encoder)
    assert not report.counts()

    def ids(text: str) -> list[int]:
        return list(encoder.tokenizer.encode(text, add_special_tokens=False))

    texts = [written.format(thought=a.thought, text=a.text) for a in answers]
    assert [list(own) for own in encoded[1:3]] == [ids(text) for text in texts]
    opening = encoder.tokenizer.apply_chat_template(
        prompt, tokenize=False, add_generation_prompt=True
    )
    assert list(encoded[0]) == ids(opening)


def judged(folder: Path, *votes: Vote, answers: Sequence[SampledAnswer] = (A, B, C)) -> Path:
    """A folder as a chat leaves it: answers and votes, no session."""
    append_answers(folder / "answers.jsonl", answers)
    append_votes(folder / "votes.jsonl", votes)
    return folder


def test_pairs_are_written_in_the_canonical_shape(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "find", "parameters": {}}}]
    thinking = answer("Four.", number=3, thought="Two pairs.", tools=tools)
    plain = answer("Nine.", number=4, tools=tools)
    votes = [
        *votes_on(thinking, plain, ">=>"),
        vote("j", A.id, B.id, "tie", edit=EditedAnswer(of=A.id, text="Mine.")),
    ]
    result = write_pairs(judged(tmp_path, *votes, answers=(A, B, thinking, plain)))
    assert result.edited_next_to_thoughts
    lines = [json.loads(line) for line in (tmp_path / PAIRS).read_text().splitlines()]
    asked = [{"role": "user", "content": "Prompt?"}]
    assert lines == [
        {
            "prompt": asked,
            "chosen": [{"role": "assistant", "content": "Mine."}],
            "rejected": [{"role": "assistant", "content": "One."}],
        },
        {
            "prompt": asked,
            "chosen": [
                {"role": "assistant", "content": "Four.", "reasoning_content": "Two pairs."}
            ],
            "rejected": [{"role": "assistant", "content": "Nine."}],
            "tools": tools,
            "weight": 2 / 3,
        },
    ]
    assert [pair.weight for pair in load_pairs(tmp_path / PAIRS)] == [1, 2 / 3]
    assert not write_pairs(tmp_path, "drop").edited_next_to_thoughts
    assert len((tmp_path / PAIRS).read_text().splitlines()) == 1


def test_without_a_pair_none_is_written_and_an_old_one_goes(tmp_path: Path) -> None:
    write_pairs(judged(tmp_path, vote("i", A.id, B.id, "first")))
    assert (tmp_path / PAIRS).exists()
    undo = vote("i", A.id, B.id, "first", vote="undo", undo="you-i")
    append_votes(tmp_path / "votes.jsonl", [undo])
    assert write_pairs(tmp_path).counts["pairs"] == 0
    assert not (tmp_path / PAIRS).exists()


def test_votes_on_other_answers_are_all_named_and_cost_no_file(tmp_path: Path) -> None:
    other = answer("Else.", "Other prompt?")
    judged(tmp_path, vote("i", A.id, B.id, "first"), answers=(A, B, C, other))
    write_pairs(tmp_path)
    before = (tmp_path / PAIRS).read_bytes()
    append_votes(
        tmp_path / "votes.jsonl",
        [
            vote("j", A.id, "none", "first"),
            vote("k", A.id, other.id, "first"),
            vote("l", A.id, B.id, "first", edit=EditedAnswer(of=C.id, text="Mine.")),
        ],
    )
    with pytest.raises(OrpoError) as error:
        write_pairs(tmp_path)
    assert str(error.value).splitlines() == [
        "These votes are not on the answers of answers.jsonl:",
        "  vote 'you-j': there is no answer 'none'",
        "  vote 'you-k': its two answers have different prompts",
        f"  vote 'you-l': its edit is of another answer, {C.id!r}",
    ]
    assert (tmp_path / PAIRS).read_bytes() == before


def test_damaged_lines_of_votes_are_named_by_number_and_cost_no_file(tmp_path: Path) -> None:
    judged(tmp_path, vote("i", A.id, B.id, "first"))
    write_pairs(tmp_path)
    with (tmp_path / "votes.jsonl").open("ab") as stream:
        stream.write(b'{"vote": "x", "choice": "best"}\n\xff\xfe\n[]\n')
    with pytest.raises(OrpoError) as error:
        write_pairs(tmp_path)
    file = tmp_path / "votes.jsonl"
    lines = str(error.value).splitlines()
    assert lines[0] == f"{file}: these lines cannot be read:"
    assert [line.split(": ")[0] for line in lines[1:]] == [f"  {file}:{n}" for n in (2, 3, 4)]
    assert "choice: Input should be 'first', 'second'" in lines[1]
    assert (tmp_path / PAIRS).exists()


def test_prompts_of_a_verdict_never_become_pairs(tmp_path: Path) -> None:
    with opened(tmp_path, two_models(2), purpose="verdict") as session:
        item = session.facts.items[0]
        session.vote("you", "v", item.id, "first")
        with pytest.raises(OrpoError, match="its prompts are measured on, never trained on"):
            write_pairs(session.folder)
        assert not (session.folder / PAIRS).exists()


def test_a_folder_without_votes_is_refused(tmp_path: Path) -> None:
    with (
        opened(tmp_path, several(1)) as session,
        pytest.raises(OrpoError, match=r"has no votes\.jsonl: nothing was judged there yet"),
    ):
        write_pairs(session.folder)
