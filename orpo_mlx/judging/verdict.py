"""Which of two models was preferred: one first vote a prompt, and what that shows. No mlx."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from orpo_mlx.judging.answers import BASE_NAME, AnswerSource, SampledAnswer
from orpo_mlx.judging.power import LEVEL, p_value, what_is_shown, wilson
from orpo_mlx.judging.session import SessionFacts
from orpo_mlx.judging.to_pairs import contradicts
from orpo_mlx.judging.votes import Vote

FEWEST = 15  # decided prompts from which on a part of them is shown
NEAR = 0.2  # lengths that differ by so much at most are alike
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Share(NamedTuple):
    """How often one model was preferred, of the prompts where either was."""

    wins: int
    decided: int

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, 95 %."""
        return wilson(self.wins, self.decided)

    @property
    def text(self) -> str:
        """`31 of 44 decided prompts (70 %, 56 to 82)`."""
        if not self.decided:
            return "0 of 0 decided prompts"
        low, high = (round(100 * end) for end in self.interval)
        percent = round(100 * self.wins / self.decided)
        return f"{self.wins} of {self.decided} decided prompts ({percent} %, {low} to {high})"


class JudgedPrompt(NamedTuple):
    """What was voted on one prompt, the answers in the order of the models."""

    vote: Vote
    first: SampledAnswer
    second: SampledAnswer
    preferred: int | None  # 0 or 1


class Part(NamedTuple):
    """A part of the decided prompts, of which `share` is the first model's."""

    name: str
    share: Share


class Verdict(NamedTuple):
    """Counts of prompts; the first of `models` is the one that the question is about."""

    models: tuple[AnswerSource, AnswerSource]
    names: tuple[str, str]
    prompts: int  # fixed when the session began
    judged: list[JudgedPrompt]  # by a first vote that is not skipped
    equal: int  # answers that were the same: ties by the machine
    skipped: int
    missing: int  # prompts without any vote
    stops: list[int]
    judges: list[str]
    repeats: int
    contradicted: int
    cut: int  # prompts with an answer that did not come to its end
    left_out: Mapping[str, int]

    @property
    def share(self) -> Share:
        """Of the first model."""
        return _share(self.judged)

    @property
    def ties(self) -> int:
        """Ties of judges and of the machine."""
        return self.equal + sum(j.vote.choice == "tie" for j in self.judged)

    @property
    def both_bad(self) -> int:
        """Prompts of which both answers were bad."""
        return sum(j.vote.choice == "both_bad" for j in self.judged)

    @property
    def stopped(self) -> bool:
        """Whether prompts are missing: then nothing is tested."""
        return self.missing > 0

    @property
    def p_value(self) -> float:
        """Of the exact binomial test, two-sided."""
        return p_value(*self.share)

    @property
    def claimed(self) -> bool:
        """Whether a difference was shown."""
        return not self.stopped and self.p_value <= LEVEL

    @property
    def by_length(self) -> list[Part]:
        """By the words of the first model's answer, against the second's."""
        return _parts(self.judged, _length)

    @property
    def by_group(self) -> list[Part]:
        """By the value of --group-by's column."""
        return _parts(self.judged, lambda judged: judged.first.group or "")


def build_verdict(
    answers: Mapping[str, SampledAnswer], votes: Sequence[Vote], facts: SessionFacts
) -> Verdict:
    """Count the first vote of each prompt, whoever gave it; repeats never count as votes."""
    originals = {item.id: item for item in facts.items if item.repeat_of is None}
    models = _models([answers[i] for item in originals.values() for i in (item.first, item.second)]
                     or [answers[i] for i in facts.equal[0]])  # fmt: skip
    first = dict[str, Vote]()
    seen = set[str]()
    for vote in votes:
        if vote.repeat_of is None and vote.item in originals:
            seen.add(vote.item)
            if vote.choice != "skip":
                first.setdefault(vote.item, vote)
    judged = [_judged(vote, answers, models[0]) for vote in first.values()]
    repeats = [(original, vote) for vote in votes if (original := _original(vote, votes))]
    return Verdict(
        models=models,
        names=_names(models),
        prompts=facts.prompts,
        judged=judged,
        equal=len(facts.equal),
        skipped=len(seen - first.keys()),
        missing=len(originals.keys() - seen),
        stops=facts.stops,
        judges=list(dict.fromkeys(vote.judge for vote in first.values())),
        repeats=len(repeats),
        contradicted=sum(contradicts(*both) for both in repeats),
        cut=sum(answers[i.first].cut or answers[i.second].cut for i in originals.values()),
        left_out=facts.left_out,
    )


def verdict_sentences(verdict: Verdict) -> list[str]:
    """The verdict with its condition, then what else the votes show."""
    sentences = [_verdict_sentence(verdict)]
    if verdict.stops and not verdict.stopped:
        stops = ", ".join(map(str, verdict.stops))
        sentences.append(
            f"The session was stopped at {stops} of {verdict.prompts} and gone on with."
        )
    if verdict.repeats:
        who = "You" if len(verdict.judges) == 1 else "The judges"
        sentences.append(
            f"{who} contradicted {'yourself' if who == 'You' else 'themselves'} in "
            f"{verdict.contradicted} of {verdict.repeats} repeats."
        )
    if verdict.skipped:
        sentences.append(f"{_count(verdict.skipped, 'prompt')} skipped.")
    if verdict.cut:
        sentences.append(
            f"{_count(verdict.cut, 'prompt')} had an answer that was cut, judged as it is."
        )
    return sentences


def verdict_facts(verdict: Verdict) -> dict[str, Any]:
    """What --json prints of a verdict."""
    low, high = verdict.share.interval
    return {
        "models": [source.model_dump() for source in verdict.models],
        "names": list(verdict.names),
        "prompts": verdict.prompts,
        "decided": verdict.share.decided,
        "preferred": [verdict.share.wins, verdict.share.decided - verdict.share.wins],
        "interval": [low, high],
        "p_value": verdict.p_value,
        "claimed": verdict.claimed,
        "stopped": verdict.stopped,
        "stops": verdict.stops,
        "ties": verdict.ties,
        "equal": verdict.equal,
        "both_bad": verdict.both_bad,
        "skipped": verdict.skipped,
        "missing": verdict.missing,
        "judges": verdict.judges,
        "repeats": verdict.repeats,
        "contradicted": verdict.contradicted,
        "cut": verdict.cut,
        "left_out": dict(verdict.left_out),
        "by_length": [[part.name, *part.share] for part in verdict.by_length],
        "by_group": [[part.name, *part.share] for part in verdict.by_group],
        "sentences": verdict_sentences(verdict),
    }


def _verdict_sentence(verdict: Verdict) -> str:
    wins, decided = verdict.share
    favored = 0 if 2 * wins >= decided else 1
    share = Share(wins if favored == 0 else decided - wins, decided)
    who = "You" if len(verdict.judges) <= 1 else f"{_number(len(verdict.judges))} judges"
    text = f"{who} preferred {verdict.names[favored]} in {share.text}"
    apart = f"{_count(verdict.ties, 'tie')} and {verdict.both_bad} both-bad apart"
    if verdict.stopped:
        done = verdict.prompts - verdict.missing
        return f"{text}; {apart}; stopped at {done} of {verdict.prompts} by choice: not a test."
    if verdict.claimed:
        return f"{text}; {apart}."
    return f"{text}: too few to say; {apart}. {what_is_shown(decided)}"


def _models(answers: Sequence[SampledAnswer]) -> tuple[AnswerSource, AnswerSource]:
    """The two sources, the base last, else in the order in which they were given."""
    sources = {answer.source.model_dump_json(): answer.source for answer in answers}
    one, other = sorted(sources.values(), key=lambda source: source.adapter is None)
    return one, other


def _names(models: tuple[AnswerSource, AnswerSource]) -> tuple[str, str]:
    one, other = models
    if other.adapter is None and one.adapter is not None and one.model == other.model:
        return "the adapter", f"the {BASE_NAME}"
    if one.name != other.name:
        return one.name, other.name
    return f"{one.name} (first)", f"{other.name} (second)"


def _judged(vote: Vote, answers: Mapping[str, SampledAnswer], model: AnswerSource) -> JudgedPrompt:
    first, second = answers[vote.first], answers[vote.second]
    if first.source != model:
        first, second = second, first
    preferred = {first.id: 0, second.id: 1}.get(vote.better or "")
    return JudgedPrompt(vote, first, second, preferred)


def _original(repeat: Vote, votes: Sequence[Vote]) -> Vote | None:
    """The same judge's vote on the item that this one repeats."""
    if repeat.repeat_of is None or repeat.choice == "skip":
        return None
    own = (v for v in votes if v.judge == repeat.judge and v.item == repeat.repeat_of)
    return next((vote for vote in own if vote.choice != "skip"), None)


def _share(judged: Sequence[JudgedPrompt]) -> Share:
    decided = [j.preferred for j in judged if j.preferred is not None]
    return Share(decided.count(0), len(decided))


def _parts(judged: Sequence[JudgedPrompt], name_of: Any) -> list[Part]:
    """Parts of the judged prompts by name, those that are large enough; none for a single part."""
    named = dict[str, list[JudgedPrompt]]()
    for one in judged:
        named.setdefault(name_of(one), []).append(one)
    parts = [Part(name, _share(own)) for name, own in sorted(named.items()) if name]
    return [part for part in parts if part.share.decided >= FEWEST] if len(named) > 1 else []


def _length(judged: JudgedPrompt) -> str:
    own, other = len(judged.first.text.split()), len(judged.second.text.split())
    if abs(own - other) <= NEAR * max(own, other):
        return "about as long"
    return "longer" if own > other else "shorter"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def _number(number: int) -> str:
    return NUMBERS[number].capitalize() if number < len(NUMBERS) else str(number)
