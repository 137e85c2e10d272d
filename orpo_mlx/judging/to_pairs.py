"""Votes to preference pairs in the canonical shape, and what became of each vote. No mlx."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from orpo_mlx.data.pairs.messages import Message, PreferencePair
from orpo_mlx.errors import OrpoError
from orpo_mlx.files import replacing
from orpo_mlx.judging.answers import SampledAnswer, folded, load_answers
from orpo_mlx.judging.session import ANSWERS, VOTES
from orpo_mlx.judging.votes import Vote, effective_votes, load_votes
from orpo_mlx.review.pairs.canonical import save_lines

PAIRS = "pairs.jsonl"
Edits = Literal["keep", "drop"]
# What is counted, in the order of the table.
COUNTS = {
    "votes": "votes",
    "preferred": "  one answer preferred",
    "ties": "  ties",
    "both_bad": "  both bad",
    "repeats": "repeats",
    "contradicted": "  that contradict the first vote: a tie",
    "skipped": "skipped",
    "edits": "edits",
    "edits_left_out": "  left out: nothing changed, dropped, or of a cut answer",
    "even": "answers with as many votes for as against",
    "cut": "votes on a cut or empty answer: nothing",
    "pairs": "pairs",
}


class PairsOfVotes(NamedTuple):
    """The pairs that votes come to, and what is counted of them (COUNTS)."""

    pairs: list[PreferencePair]
    counts: dict[str, int]
    edited_next_to_thoughts: bool  # edits have none, and others do


class VoteTally(NamedTuple):
    """Votes on two answers: for the first, for the second, and neither."""

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
    """One pair for each prompt, better and worse answer, weighted by the votes of all judges.

    Each judge's first vote on two answers counts; one that its repeat contradicts is a tie, as is
    "both bad". Raises OrpoError for votes on answers that are not there.
    """
    _check_known(answers, votes)
    counts = Counter[str]()
    pairs = [
        *_preferred(answers, votes, counts),
        *_edited(answers, votes, counts, keep=edits == "keep"),
    ]
    counts["pairs"] = len(pairs)
    thoughts = any("reasoning_content" in m for pair in pairs for m in pair.responses)
    written = counts["edits"] > counts["edits_left_out"]
    return PairsOfVotes(pairs, {name: counts[name] for name in COUNTS}, thoughts and written)


def write_pairs(folder: Path, edits: Edits = "keep") -> PairsOfVotes:
    """Write pairs.jsonl of a folder with answers and votes; without a pair none is left there.

    Raises OrpoError for a folder without them, and for files that cannot be read.
    """
    if not (folder / VOTES).exists():
        raise OrpoError(f"{folder} has no {VOTES}: nothing was judged there yet.")
    answers = {answer.id: answer for answer in load_answers(folder / ANSWERS)}
    result = pairs_of_votes(answers, effective_votes(load_votes(folder / VOTES)), edits=edits)
    if result.pairs:
        with replacing(folder / PAIRS) as new:
            save_lines(result.pairs, new)
    else:
        (folder / PAIRS).unlink(missing_ok=True)
    return result


def _check_known(answers: Mapping[str, SampledAnswer], votes: Iterable[Vote]) -> None:
    ids = {i for vote in votes for i in (vote.first, vote.second, *_edited_ids(vote))}
    if unknown := sorted(ids - answers.keys()):
        raise OrpoError(
            f"{len(unknown)} answers that were voted on are not in {ANSWERS} ({unknown[0]}): it "
            "belongs to other votes."
        )


def _edited_ids(vote: Vote) -> list[str]:
    return [vote.edit.of] if vote.edit else []


def _preferred(
    answers: Mapping[str, SampledAnswer], votes: Sequence[Vote], counts: Counter[str]
) -> list[PreferencePair]:
    same = _ids_by_text(answers)
    tallies = dict[tuple[str, str], VoteTally]()
    for vote in _first_votes(votes, counts):
        counts["votes"] += 1
        first, second = answers[vote.first], answers[vote.second]
        if not (_is_whole(first) and _is_whole(second)):
            counts["cut"] += 1
            continue
        better = None if vote.choice == "tie" else vote.better
        name = {"tie": "ties", "both_bad": "both_bad"}.get(vote.choice, "preferred")
        counts[name] += 1
        one, other = sorted((same[first.id], same[second.id]))
        if one == other:
            continue
        tally = tallies.get((one, other), VoteTally())
        field = "ties" if better is None else "first" if same[better] == one else "second"
        tallies[one, other] = tally._replace(**{field: getattr(tally, field) + 1})
    counts["even"] = sum(t.first == t.second > 0 for t in tallies.values())
    return [
        _pair(answers[a], answers[b], tally) if tally.first > tally.second
        else _pair(answers[b], answers[a], tally)
        for (a, b), tally in tallies.items()
        if tally.weight
    ]  # fmt: skip


def _first_votes(votes: Sequence[Vote], counts: Counter[str]) -> list[Vote]:
    """Each judge's first vote on two answers; one that its repeat contradicts as a tie."""
    first = dict[tuple[str, frozenset[str]], Vote]()
    for vote in votes:
        key = vote.judge, frozenset((vote.first, vote.second))
        if vote.choice == "skip":
            counts["skipped"] += 1
        elif vote.repeat_of is None:
            first.setdefault(key, vote)
    for vote in votes:
        key = vote.judge, frozenset((vote.first, vote.second))
        original = first.get(key)
        if vote.repeat_of is None or vote.choice == "skip" or original is None:
            continue
        counts["repeats"] += 1
        if contradicts(original, vote):
            counts["contradicted"] += 1
            first[key] = original.model_copy(update={"choice": "tie"})
    return list(first.values())


def contradicts(original: Vote, repeat: Vote) -> bool:
    """Whether the repeat of an item prefers the other answer."""
    return original.better is not None and repeat.better == original.worse


def _edited(
    answers: Mapping[str, SampledAnswer], votes: Sequence[Vote], counts: Counter[str], *, keep: bool
) -> list[PreferencePair]:
    """The edit over the answer it was begun from, and over the other one if both were bad."""
    pairs = dict[tuple[str, str], PreferencePair]()
    for vote in votes:
        if vote.edit is None:
            continue
        counts["edits"] += 1
        begun, other = answers[vote.edit.of], {vote.first, vote.second} - {vote.edit.of}
        worse = [begun, *(answers[i] for i in other if vote.choice == "both_bad")]
        text = vote.edit.text
        rejected = [a for a in worse if _is_whole(a) and folded(a.text) != folded(text)]
        if not keep or not rejected or not text.strip():
            counts["edits_left_out"] += 1
            continue
        for answer in rejected:
            pairs[text, answer.id] = _pair(text, answer, VoteTally(first=1))
    return list(pairs.values())


def _ids_by_text(answers: Mapping[str, SampledAnswer]) -> dict[str, str]:
    """Of each answer the id of the first one of its source and prompt with the same text."""
    first = dict[tuple[str, str, str], str]()
    return {
        i: first.setdefault((a.source.model_dump_json(), a.prompt_id, folded(a.text)), i)
        for i, a in answers.items()
    }


def _is_whole(answer: SampledAnswer) -> bool:
    """Whether an answer may be chosen or rejected: training would add an end to a cut one."""
    return not answer.cut and bool(answer.text.strip())


def _pair(better: SampledAnswer | str, worse: SampledAnswer, tally: VoteTally) -> PreferencePair:
    return PreferencePair(
        worse.prompt,
        _message(better),
        _message(worse),
        f"vote on {worse.id}",
        worse.tools,
        weight=tally.weight,
    )


def _message(answer: SampledAnswer | str) -> Message:
    """An answer as readers know it: its thought in a key of its own."""
    text, thought = (answer, "") if isinstance(answer, str) else (answer.text, answer.thought)
    message: dict[str, Any] = {"role": "assistant", "content": text}
    return message | ({"reasoning_content": thought} if thought.strip() else {})
