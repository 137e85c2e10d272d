"""Votes to preference pairs in the canonical shape, and what became of each vote. No mlx."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Literal, NamedTuple

from orpo_mlx.data.pairs.message_parts.content import is_invisible
from orpo_mlx.data.pairs.messages import Message, PreferencePair
from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.files import remove, replacing
from orpo_mlx.judging.answers import SampledAnswer, answer_message, folded, load_answers
from orpo_mlx.judging.session import ANSWERS, SESSION, VOTES, load_facts
from orpo_mlx.judging.votes import Vote, effective_votes, load_votes
from orpo_mlx.review.pairs.canonical import save_lines

PAIRS = "pairs.jsonl"
# A session comes to some 30 pairs: by train's own defaults they would be four steps.
FEW_PAIRS = ("--epochs", "3", "--batch-size", "4", "--learning-rate", "2e-4")
Edits = Literal["keep", "drop"]
# What is counted, in the order of the table.
COUNTS = {
    "votes": "votes",
    "preferred": "  one answer preferred",
    "ties": "  ties",
    "both_bad": "  both bad",
    "unusable": "  on a cut, an empty or two equal answers: nothing",
    "repeats": "repeats",
    "contradicted": "  that prefer the other answer: their vote is a tie",
    "further": "further votes of a judge on the same texts: not counted",
    "skipped": "skipped",
    "edits": "edits",
    "edits_left_out": "  left out: nothing changed, of a cut answer, or by --edits drop",
    "even": "two answers with as many votes for as against: no pair",
    "pairs": "pairs",
    "pairs_of_edits": "  of edits",
}

Text = tuple[str, str]  # a prompt's id and an answer's folded text: answers alike are one
TwoTexts = tuple[Text, Text]  # in order


class PairsOfVotes(NamedTuple):
    """The pairs that votes come to, and what is counted of them (COUNTS)."""

    pairs: list[PreferencePair]
    counts: dict[str, int]
    edited_next_to_thoughts: bool  # edits have none, and others do


class VoteTally(NamedTuple):
    """Votes on two answers: for the first, for the second, and for neither."""

    first: int = 0
    second: int = 0
    ties: int = 0

    @property
    def weight(self) -> float:
        """How clearly one is preferred: |for - against| / (for + against + ties)."""
        return abs(self.first - self.second) / max(sum(self), 1)


def pairs_of_votes(
    answers: Mapping[str, SampledAnswer], votes: Sequence[Vote], *, edits: Edits = "keep"
) -> PairsOfVotes:
    """One pair for each prompt, better and worse text, weighted by the votes of all judges.

    Each judge's first vote on two texts counts. One that its repeat contradicts is a tie, and so is
    "both bad". An edit is better than the answer that it was begun from, and than the other one if
    both were bad, whatever was voted on those two texts. Raises OrpoError for votes on answers that
    are not there.
    """
    if problems := list(_problems(answers, votes)):
        raise collected(f"These votes are not on the answers of {ANSWERS}:", problems)
    counts = Counter[str]()
    texts = {i: (answer.prompt_id, folded(answer.text)) for i, answer in answers.items()}
    shown = [answers[i] for vote in votes for i in (vote.first, vote.second)]
    judged = {texts[answer.id]: answer for answer in reversed(shown) if _is_whole(answer)}
    voted = _tally_votes(answers, votes, texts, counts)
    edited, written = _tally_edits(answers, votes, texts, counts, keep=edits == "keep")
    pairs = [
        *_pairs(edited, written, judged),
        *_pairs({two: t for two, t in voted.items() if two not in edited}, {}, judged),
    ]
    tallies = voted | edited
    counts["even"] = sum(tally.first == tally.second > 0 for tally in tallies.values())
    counts["pairs"] = len(pairs)
    counts["pairs_of_edits"] = sum(tally.weight > 0 for tally in edited.values())
    thoughts = any("reasoning_content" in m for pair in pairs for m in pair.responses)
    mixed = thoughts and counts["pairs_of_edits"] > 0
    return PairsOfVotes(pairs, {name: counts[name] for name in COUNTS}, mixed)


def write_pairs(folder: Path, edits: Edits = "keep") -> PairsOfVotes:
    """Write pairs.jsonl of a folder with answers and votes; without a pair none is left there.

    Raises OrpoError for a folder without them, for the votes of a verdict, and for files that
    cannot be read.
    """
    if (folder / SESSION).exists() and load_facts(folder).purpose == "verdict":
        raise OrpoError(
            f"{folder} was judged for a verdict: its prompts are measured on, never trained on. "
            "Judge others with --for pairs."
        )
    if not (folder / VOTES).exists():
        raise OrpoError(f"{folder} has no {VOTES}: nothing was judged there yet.")
    answers = {answer.id: answer for answer in load_answers(folder / ANSWERS)}
    result = pairs_of_votes(answers, effective_votes(load_votes(folder / VOTES)), edits=edits)
    if result.pairs:
        with replacing(folder / PAIRS) as new:
            save_lines(result.pairs, new)
    else:
        remove(folder / PAIRS)
    return result


def contradicts(original: Vote, repeat: Vote) -> bool:
    """Whether the repeat of an item prefers the other answer."""
    return original.better is not None and repeat.better == original.worse


def _problems(answers: Mapping[str, SampledAnswer], votes: Sequence[Vote]) -> Iterator[str]:
    """What of votes does not fit the answers, a line each."""
    for vote in votes:
        shown = vote.first, vote.second
        if unknown := [i for i in shown if i not in answers]:
            yield f"vote {vote.vote!r}: there is no answer {', '.join(map(repr, unknown))}"
        elif len({answers[i].prompt_id for i in shown}) > 1:
            yield f"vote {vote.vote!r}: its two answers have different prompts"
        elif vote.edit and vote.edit.of not in shown:
            yield f"vote {vote.vote!r}: its edit is of another answer, {vote.edit.of!r}"


def _tally_votes(
    answers: Mapping[str, SampledAnswer],
    votes: Sequence[Vote],
    texts: Mapping[str, Text],
    counts: Counter[str],
) -> dict[TwoTexts, VoteTally]:
    """What all judges voted on each two texts, in order of the first votes."""
    contradicted = _contradicted(votes, counts)
    usable = {i for i, answer in answers.items() if _is_whole(answer)}
    tallies = dict[TwoTexts, VoteTally]()
    for vote in _first_votes(votes, texts, usable, counts):
        better = None if vote.vote in contradicted else vote.better
        counts["preferred" if better else "both_bad" if vote.choice == "both_bad" else "ties"] += 1
        _add(tallies, texts[vote.first], texts[vote.second], texts[better] if better else None)
    return tallies


def _first_votes(
    votes: Sequence[Vote], texts: Mapping[str, Text], usable: Set[str], counts: Counter[str]
) -> list[Vote]:
    """Each judge's first vote on two texts, without repeats and what was skipped."""
    first = dict[tuple[str, frozenset[Text]], Vote]()
    for vote in votes:
        two = frozenset((texts[vote.first], texts[vote.second]))
        if vote.choice == "skip":
            counts["skipped"] += vote.edit is None
        elif vote.repeat_of is None and (vote.judge, two) in first:
            counts["further"] += 1
        elif vote.repeat_of is None:
            counts["votes"] += 1
            if len(two) == 2 and {vote.first, vote.second} <= usable:
                first[vote.judge, two] = vote
            else:
                counts["unusable"] += 1
    return list(first.values())


def _contradicted(votes: Sequence[Vote], counts: Counter[str]) -> set[str]:
    """The votes whose repeat by the same judge prefers the other answer."""
    by_item = {(vote.judge, vote.item): vote for vote in votes}
    contradicted = set[str]()
    for repeat in votes:
        original = by_item.get((repeat.judge, repeat.repeat_of or ""))
        if original and "skip" not in (original.choice, repeat.choice):
            counts["repeats"] += 1
            if contradicts(original, repeat):
                counts["contradicted"] += 1
                contradicted.add(original.vote)
    return contradicted


def _tally_edits(
    answers: Mapping[str, SampledAnswer],
    votes: Sequence[Vote],
    texts: Mapping[str, Text],
    counts: Counter[str],
    *,
    keep: bool,
) -> tuple[dict[TwoTexts, VoteTally], dict[Text, str]]:
    """Each edit against the answers that it is better than, and the edits as they were written."""
    tallies, written = dict[TwoTexts, VoteTally](), dict[Text, str]()
    for vote in votes:
        if vote.edit is None:
            continue
        counts["edits"] += 1
        new: Text = texts[vote.edit.of][0], folded(vote.edit.text)
        shown = {vote.first, vote.second} if vote.choice == "both_bad" else {vote.edit.of}
        worse = {texts[i] for i in shown if _is_whole(answers[i])} - {new}
        if not keep or not worse or is_invisible(vote.edit.text):
            counts["edits_left_out"] += 1
            continue
        written.setdefault(new, vote.edit.text.rstrip())
        for text in sorted(worse):
            _add(tallies, new, text, new)
    return tallies, written


def _add(tallies: dict[TwoTexts, VoteTally], one: Text, other: Text, better: Text | None) -> None:
    """Count a vote on two texts."""
    first, second = sorted((one, other))
    tally = tallies.get((first, second), VoteTally())
    field = "ties" if better is None else "first" if better == first else "second"
    tallies[first, second] = tally._replace(**{field: getattr(tally, field) + 1})


def _pairs(
    tallies: Mapping[TwoTexts, VoteTally],
    written: Mapping[Text, str],
    judged: Mapping[Text, SampledAnswer],
) -> Iterator[PreferencePair]:
    """A pair for each two texts of which one is preferred, as an edit where `written` has it."""
    for (first, second), tally in tallies.items():
        if not tally.weight:
            continue
        better, worse = (first, second) if tally.first > tally.second else (second, first)
        answer = judged[worse]
        yield PreferencePair(
            answer.prompt,
            _message(written.get(better) or judged[better]),
            _message(answer),
            f"vote on {answer.id}",
            answer.tools,
            weight=tally.weight,
        )


def _is_whole(answer: SampledAnswer) -> bool:
    """Whether an answer may be chosen or rejected: training would add an end to a cut one."""
    return not answer.cut and not is_invisible(answer.text)


def _message(answer: SampledAnswer | str) -> Message:
    """An answer, or an edit, which has no thought."""
    if isinstance(answer, str):
        return answer_message(answer)
    return answer_message(answer.text, answer.thought)
