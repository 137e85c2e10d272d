"""Which of two models was preferred: one first vote a prompt, and what that shows. No mlx."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from orpo_mlx.judging.answers import BASE_NAME, AnswerSource, SampledAnswer
from orpo_mlx.judging.plan import unlike_settings
from orpo_mlx.judging.power import LEVEL, p_value, what_is_shown, wilson
from orpo_mlx.judging.session import SessionFacts
from orpo_mlx.judging.to_pairs import contradicts
from orpo_mlx.judging.votes import Vote

VERDICT, VERDICT_PAGE = "verdict.json", "verdict.html"
FEWEST = 15  # decided prompts from which on a part of them is shown
NEAR = 0.2  # of the longer one, by which two answers may differ and be alike in length
NUMBERS = {2: "Two", 3: "Three", 4: "Four", 5: "Five", 6: "Six", 7: "Seven", 8: "Eight", 9: "Nine"}


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
        """`31 of 44 decided prompts (70 %, 56 to 82)`, of at least one."""
        low, high = (round(100 * end) for end in self.interval)
        percent = round(100 * self.wins / self.decided)
        prompts = f"decided prompt{'s' * (self.decided != 1)}"
        return f"{self.wins} of {self.decided} {prompts} ({percent} %, {low} to {high})"


class JudgedPrompt(NamedTuple):
    """What was voted on one prompt, the answers in the order of the models."""

    vote: Vote
    first: SampledAnswer
    second: SampledAnswer
    preferred: int | None  # 0 or 1


class PartShare(NamedTuple):
    """A part of the decided prompts, of which `share` is the first model's."""

    name: str
    share: Share


class Verdict(NamedTuple):
    """Counts of prompts; the first of `models` is the one that the question is about."""

    models: tuple[AnswerSource, AnswerSource]
    names: tuple[str, str]
    prompts: int  # fixed when the session began
    judged: list[JudgedPrompt]  # by a first vote that is not skipped
    equal: int  # prompts with equal answers: ties by the machine
    skipped: int
    missing: int  # prompts without any vote
    over: bool  # the session was ended
    stops: list[int]  # prompts that were done at each end before the last one
    went_on: bool  # votes were added after an end
    judges: list[str]  # of the first votes
    further: int  # votes on a prompt that had its first vote
    repeats: int
    contradicted: int
    cut: int  # prompts with an answer that did not come to its end
    left_out: Mapping[str, int]
    unlike: Mapping[str, Sequence[Any]]  # settings that were not the same for both

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
    def by_length(self) -> list[PartShare]:
        """By the characters of the first model's answer, compared with the second's."""
        return _parts(self.judged, _length)

    @property
    def by_group(self) -> list[PartShare]:
        """By the value of --group-by's column."""
        return _parts(self.judged, lambda judged: judged.first.group or "")


def parts_of(verdict: Verdict) -> list[tuple[str, list[PartShare]]]:
    """The parts that are large enough, under what they are parts by."""
    by_length = f"answer of {verdict.names[0]}, by characters"
    parts = [(by_length, verdict.by_length), ("group of the prompt", verdict.by_group)]
    return [(by, own) for by, own in parts if own]


def build_verdict(
    answers: Mapping[str, SampledAnswer], votes: Sequence[Vote], facts: SessionFacts
) -> Verdict:
    """Count the first vote of each prompt, whoever gave it; repeats never count as votes."""
    originals = {item.id: item for item in facts.items if item.repeat_of is None}
    given = [vote for vote in votes if vote.item in originals]
    counted = [vote for vote in given if vote.choice != "skip"]
    first = {vote.item: vote for vote in reversed(counted)}
    in_order = [vote for vote in counted if first[vote.item] is vote]
    done = {vote.item for vote in given}
    two = _one_of_each(answers, facts)
    models = two[0].source, two[1].source
    repeats = _repeats(votes)
    return Verdict(
        models=models,
        names=_names(models),
        prompts=facts.prompts,
        judged=[_judged(vote, answers, models[0]) for vote in in_order],
        equal=len(facts.equal),
        skipped=len(done - first.keys()),
        missing=len(originals.keys() - done),
        over=facts.ended is not None,
        stops=[stop + len(facts.equal) for stop in facts.stops],
        went_on=bool(facts.went_on),
        judges=list(dict.fromkeys(vote.judge for vote in in_order)),
        further=len(counted) - len(first),
        repeats=len(repeats),
        contradicted=sum(contradicts(*both) for both in repeats),
        cut=sum(answers[i.first].cut or answers[i.second].cut for i in originals.values()),
        left_out=facts.left_out,
        unlike=unlike_settings(two),
    )


def verdict_sentences(verdict: Verdict) -> list[str]:
    """The verdict with its condition, then what else there is to know of the votes."""
    one_judge = len(verdict.judges) <= 1
    conditions = {
        f"The session was stopped at {', '.join(map(str, verdict.stops))} of {verdict.prompts} "
        "prompts, and gone on with.": verdict.stops and not verdict.stopped,
        "Votes were added or taken back after the end.": verdict.went_on,
        f"{'You contradicted yourself' if one_judge else 'The judges contradicted themselves'} in "
        f"{verdict.contradicted} of {verdict.repeats} repeats.": verdict.repeats,
        f"{_count(verdict.further, 'further vote')} on prompts that had a first vote, not "
        "counted.": verdict.further,
        f"{_count(verdict.skipped, 'prompt')} skipped.": verdict.skipped,
        f"{_count(verdict.cut, 'prompt')} with an answer that was cut, judged as it is.":
            verdict.cut,
    }  # fmt: skip
    return [
        _verdict_sentence(verdict),
        *(sentence for sentence, holds in conditions.items() if holds),
        *(
            f"The two models were sampled with unlike settings: {name.replace('_', ' ')} "
            f"{' and '.join(map(setting_text, values))}. A difference may be due to that."
            for name, values in verdict.unlike.items()
        ),
    ]


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
        "over": verdict.over,
        "stops": verdict.stops,
        "went_on": verdict.went_on,
        "ties": verdict.ties,
        "equal": verdict.equal,
        "both_bad": verdict.both_bad,
        "skipped": verdict.skipped,
        "missing": verdict.missing,
        "judges": verdict.judges,
        "further": verdict.further,
        "repeats": verdict.repeats,
        "contradicted": verdict.contradicted,
        "cut": verdict.cut,
        "left_out": dict(verdict.left_out),
        "unlike": dict(verdict.unlike),
        "by_length": [[part.name, *part.share] for part in verdict.by_length],
        "by_group": [[part.name, *part.share] for part in verdict.by_group],
    }


def setting_text(value: Any) -> str:
    """A setting as people write it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, dict):
        return ", ".join(f"{name}={setting_text(own)}" for name, own in value.items()) or "none"
    return "none" if value is None else str(value)


def _verdict_sentence(verdict: Verdict) -> str:
    decided = verdict.share.decided
    text, apart = _preference(verdict), _apart(verdict)
    if verdict.stopped:
        done = verdict.prompts - verdict.missing
        how = "stopped at" if verdict.over else "so far"
        choice = " by choice" if verdict.over else ""
        return f"{text}; {apart}; {how} {done} of {verdict.prompts}{choice}: not a test."
    if verdict.claimed:
        return f"{text}; {apart}."
    return f"{text}: too few to say; {apart}. {what_is_shown(decided)}"


def _preference(verdict: Verdict) -> str:
    """`You preferred the adapter in 31 of 44 decided prompts (70 %, 56 to 82)`."""
    wins, decided = verdict.share
    if not decided:
        return "No prompt was decided"
    favored = 0 if 2 * wins >= decided else 1
    share = Share(wins if favored == 0 else decided - wins, decided)
    judges = len(verdict.judges)
    who = "You" if judges == 1 else f"{NUMBERS.get(judges, judges)} judges"
    return f"{who} preferred {verdict.names[favored]} in {share.text}"


def _apart(verdict: Verdict) -> str:
    """`9 ties (2 of equal answers) and 3 both-bad apart`."""
    equal = f" ({verdict.equal} of equal answers)" if verdict.equal else ""
    return f"{_count(verdict.ties, 'tie')}{equal} and {verdict.both_bad} both-bad apart"


def _one_of_each(
    answers: Mapping[str, SampledAnswer], facts: SessionFacts
) -> tuple[SampledAnswer, SampledAnswer]:
    """An answer of each model, of the base last, else in the order in which they were sampled."""
    ids = (facts.items[0].first, facts.items[0].second) if facts.items else facts.equal[0]
    earlier = next(i for i in answers if i in ids)
    one, other = sorted(
        (answers[i] for i in ids), key=lambda a: (a.source.adapter is None, a.id != earlier)
    )
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


def _repeats(votes: Sequence[Vote]) -> list[tuple[Vote, Vote]]:
    """Votes of a judge with that judge's vote on the repeat; skipped ones are left out."""
    given = {(vote.judge, vote.item): vote for vote in votes if vote.choice != "skip"}
    twos = ((given.get((v.judge, v.repeat_of or "")), v) for v in given.values() if v.repeat_of)
    return [(original, repeat) for original, repeat in twos if original]


def _share(judged: Sequence[JudgedPrompt]) -> Share:
    decided = [j.preferred for j in judged if j.preferred is not None]
    return Share(decided.count(0), len(decided))


def _parts(
    judged: Sequence[JudgedPrompt], name_of: Callable[[JudgedPrompt], str]
) -> list[PartShare]:
    """Parts of the judged prompts by name, those that are large enough; none for a single part."""
    named = dict[str, list[JudgedPrompt]]()
    for one in judged:
        named.setdefault(name_of(one), []).append(one)
    parts = [PartShare(name, _share(own)) for name, own in sorted(named.items()) if name]
    return [part for part in parts if part.share.decided >= FEWEST] if len(named) > 1 else []


def _length(judged: JudgedPrompt) -> str:
    own, other = len(judged.first.text), len(judged.second.text)
    if abs(own - other) <= NEAR * max(own, other):
        return "within 20 %"
    return "longer" if own > other else "shorter"


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'s' * (number != 1)}"
