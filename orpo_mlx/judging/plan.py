"""Which two answers a judge sees, in which order and on which sides. Imports no mlx.

A plan follows from the texts and the seed alone: it is the same when two models swap all their
answers, so nothing of it shows who answered.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from hashlib import blake2b
from itertools import combinations
from typing import Any, NamedTuple

from orpo_mlx.data.pairs.message_parts.content import is_invisible
from orpo_mlx.errors import OrpoError
from orpo_mlx.judging.answers import SampledAnswer, folded
from orpo_mlx.judging.json_lines import JsonRow

# One item in REPEATED is shown again, but never fewer than FEWEST; where that would be more than a
# third, with fewer items than SHORTEST, none is.
REPEATED, FEWEST, SHORTEST = 6, 8, 24
APART = 5  # items between an item and its repeat, at least
SPREAD = 6  # up to so many more, less one
SIDES = ((0, 0, 1, 1), (0, 1, 0, 1), (0, 1, 1, 0), (1, 0, 0, 1), (1, 0, 1, 0), (1, 1, 0, 0))

# What two models that are compared should have alike.
SETTINGS = ("temperature", "max_tokens", "thinking", "template_date", "template_args")

Two = tuple[SampledAnswer, SampledAnswer]


class PlannedItem(JsonRow):
    """What is shown at once: ids of two answers, `first` on the left."""

    id: str
    first: str
    second: str
    repeat_of: str | None = None


class SessionPlan(NamedTuple):
    """The items of a session, and what is not among them."""

    items: list[PlannedItem]
    prompts: int  # that have an item, or a tie by the machine
    equal: list[tuple[str, str]]  # ids of equal answers of two models: ties by the machine
    left_out: dict[str, int]  # reason -> how often


def plan_pairs(answers: Sequence[SampledAnswer], *, per_prompt: int, seed: int) -> SessionPlan:
    """Items of two unlike answers of one source; raises OrpoError if there are none.

    Of each prompt and source the two whose words differ most, then others, `per_prompt` at most.
    """
    left_out = Counter[str]()
    chosen = list[Two]()
    prompts = set[str]()
    for own in _by_source_and_prompt(answers):
        unlike = _most_unlike(_whole_and_different(own, left_out), per_prompt)
        left_out["prompt without two whole, unlike answers"] += not unlike
        prompts |= {first.prompt_id for first, _ in unlike}
        chosen += [_in_order_of_text(two) for two in unlike]
    if not chosen:
        raise OrpoError(
            f"There are no two answers of one model to compare ({_reasons(left_out)}). Sample more "
            "with -n, a higher --temperature, or a higher --max-tokens where answers were cut."
        )
    items = _items(_shuffled(chosen, seed), seed)
    return SessionPlan(items, len(prompts), [], dict(+left_out))


def plan_verdict(answers: Sequence[SampledAnswer], *, seed: int) -> SessionPlan:
    """Items of one answer of each of two sources; raises OrpoError for more or fewer sources.

    Equal answers are a tie by the machine, and not shown.
    """
    one, other = (_first_answers(own) for own in _two_sources(answers))
    left_out = {
        "prompt that only one model answered": len(one.keys() ^ other.keys()),
        "further answer of a model to a prompt": len(answers) - len(one) - len(other),
    }
    both = [(one[prompt], other[prompt]) for prompt in one if prompt in other]
    if not both:
        raise OrpoError(
            "No prompt was answered by both models. Sample both with the same --prompts."
        )
    equal = [(a.id, b.id) for a, b in both if folded(a.text) == folded(b.text)]
    differing = [(a, b) for a, b in both if folded(a.text) != folded(b.text)]
    items = _items(_smaller_text_first(_shuffled(differing, seed)), seed)
    return SessionPlan(items, len(both), equal, dict(+Counter(left_out)))


def unlike_settings(answers: Iterable[SampledAnswer]) -> dict[str, list[Any]]:
    """The settings, apart from the model, in which the sources of answers differ: their values."""
    sources = [own[0].source.model_dump() for own in _by_source(answers)]
    values = {name: [source[name] for source in sources] for name in SETTINGS}
    return {name: own for name, own in values.items() if any(v != own[0] for v in own)}


def _two_sources(answers: Sequence[SampledAnswer]) -> list[list[SampledAnswer]]:
    sources = _by_source(answers)
    if len(sources) != 2:
        names = ", ".join(own[0].source.name for own in sources)
        unlike = "; ".join(
            f"{name}: {', '.join(map(str, own))}" for name, own in unlike_settings(answers).items()
        )
        raise OrpoError(
            f"A verdict compares answers of two models, found {len(sources)}: {names}"
            f"{f' ({unlike})' if unlike else ''}. Give answers of both: orpo-mlx sample --adapter "
            "base --adapter FOLDER, or a file of each."
        )
    return sources


def _by_source(answers: Iterable[SampledAnswer]) -> list[list[SampledAnswer]]:
    groups = dict[str, list[SampledAnswer]]()
    for answer in answers:
        groups.setdefault(answer.source.model_dump_json(), []).append(answer)
    return list(groups.values())


def _by_source_and_prompt(answers: Iterable[SampledAnswer]) -> list[list[SampledAnswer]]:
    groups = dict[tuple[str, str], list[SampledAnswer]]()
    for answer in answers:
        groups.setdefault((answer.source.model_dump_json(), answer.prompt_id), []).append(answer)
    return list(groups.values())


def _first_answers(own: Iterable[SampledAnswer]) -> dict[str, SampledAnswer]:
    """Of each prompt the answer with the lowest number."""
    first = dict[str, SampledAnswer]()
    for answer in sorted(own, key=lambda a: a.number):
        first.setdefault(answer.prompt_id, answer)
    return first


def _whole_and_different(
    own: Sequence[SampledAnswer], left_out: Counter[str]
) -> list[SampledAnswer]:
    """The answers that can be trained on, equal ones once, in the order of a hash of their texts.

    What is left out is counted.
    """
    finished = [answer for answer in own if not answer.cut]
    whole = [answer for answer in finished if not is_invisible(answer.text)]
    last_first = sorted(whole, key=lambda a: (-a.number, _texts_of(a)))
    different = list({folded(answer.text): answer for answer in last_first}.values())
    left_out["answer that was cut"] += len(own) - len(finished)
    left_out["empty answer"] += len(finished) - len(whole)
    left_out["answer equal to another of its model"] += len(whole) - len(different)
    return sorted(different, key=_texts_of)


def _most_unlike(own: Sequence[SampledAnswer], count: int) -> list[Two]:
    """Twos of different answers, each answer in one of them, the most unlike first."""
    used, twos = set[str](), list[Two]()
    for a, b in sorted(combinations(own, 2), key=_likeness):
        if len(twos) < count and not {a.id, b.id} & used:
            used |= {a.id, b.id}
            twos.append((a, b))
    return twos


def _likeness(two: Two) -> float:
    """How much of the words of two answers is the same, in the same order; 1: all."""
    one, other = (folded(answer.text).split() for answer in two)
    return SequenceMatcher(None, one, other, autojunk=False).ratio()


def _shuffled(twos: Sequence[Two], seed: int) -> list[Two]:
    """In the order of a hash of seed, prompt and texts."""
    return sorted(twos, key=lambda two: _draw(seed, two[0].prompt_id, *sorted(map(_texts_of, two))))


def _in_order_of_text(two: Two) -> Two:
    first, second = sorted(two, key=_texts_of)
    return first, second


def _smaller_text_first(twos: Sequence[Two]) -> list[Two]:
    """The source that wrote the smaller text of the first item in front, in all items."""
    if twos and _in_order_of_text(twos[0]) != twos[0]:
        return [(second, first) for first, second in twos]
    return list(twos)


def _texts_of(answer: SampledAnswer) -> str:
    """A hash of what a judge sees of an answer: their order is none that a judge could guess."""
    shown = f"{answer.text}\0{answer.thought}\0{answer.cut}"
    return blake2b(shown.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _items(twos: Sequence[Two], seed: int) -> list[PlannedItem]:
    """The items of these answers, half of them with sides swapped, and their repeats."""
    items = []
    for number, two in enumerate(twos):
        sides = SIDES[_draw(seed, "sides", number // 4) % len(SIDES)]
        first, second = reversed(two) if sides[number % 4] else two
        items.append(PlannedItem(id=_item_id(seed, number), first=first.id, second=second.id))
    return _with_repeats(items, seed)


def _with_repeats(items: Sequence[PlannedItem], seed: int) -> list[PlannedItem]:
    """The items, some again with their sides swapped, at least APART items later."""
    due = dict[int, list[PlannedItem]]()  # after so many of the items, at the earliest
    for number in _repeated(len(items), seed):
        after = number + 1 + APART + _draw(seed, "after", number) % SPREAD
        due.setdefault(min(after, len(items)), []).append(items[number])
    planned = list[PlannedItem]()
    for number, item in enumerate(items):
        planned += [_repeat(seed, original) for original in due.get(number, ())]
        planned.append(item)
    return planned + [_repeat(seed, original) for original in due.get(len(items), ())]


def repeats_of(items: int) -> int:
    """How many of so many items are shown again."""
    return max(items // REPEATED, FEWEST) if items >= SHORTEST else 0


def _repeated(items: int, seed: int) -> list[int]:
    """Numbers of the items that are shown again, none too near to the end."""
    drawn = sorted(range(items - APART), key=lambda number: _draw(seed, "repeat", number))
    return sorted(drawn[: repeats_of(items)])


def _repeat(seed: int, original: PlannedItem) -> PlannedItem:
    return PlannedItem(
        id=_item_id(seed, original.id),
        first=original.second,
        second=original.first,
        repeat_of=original.id,
    )


def _item_id(seed: int, of: int | str) -> str:
    return f"{_draw(seed, 'item', of):016x}"


def _draw(seed: int, *parts: object) -> int:
    """64 bits that follow from the seed and the parts."""
    return int.from_bytes(blake2b(repr((seed, *parts)).encode(), digest_size=8).digest(), "little")


def _reasons(left_out: Counter[str]) -> str:
    return "; ".join(f"{count} x {reason}" for reason, count in (+left_out).items()) or "no answers"
