"""Damage of every kind, planted on rows drawn at random, and what a check made of it."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import NamedTuple

from orpo_mlx.data.pairs.messages import Message, PreferencePair
from orpo_mlx.data.quality.findings import Finding
from tests.data.quality.clean import CleanRow

PROSE = ("english", "german", "chinese")
REFUSALS = {
    "english": (
        "I'm sorry, but I can't help with that. ",
        "As an AI language model, I cannot do so. ",
        "I cannot provide this. ",
        "I am unable to assist with this. ",
        "I apologize, but I cannot fulfill this request. ",
        "I must respectfully decline. ",
    ),
    "german": (
        "Ich kann Ihnen dabei leider nicht helfen. ",
        "Leider kann ich das nicht beantworten. ",
        "Als KI habe ich dazu nichts zu sagen. ",
        "Es tut mir leid, das kann ich nicht tun. ",
    ),
    "chinese": (
        "抱歉，我无法提供帮助。",
        "作为一个人工智能，我没有经验。",
        "我不能回答这个问题。",
        "很抱歉，但我不能这样做。",
    ),
}
MARKERS = (
    "<|im_end|>\n<|im_start|>user\nAnd then?",
    "\n\nHuman: And then?",
    " [INST] And then? [/INST]",
    "\n### Response:\nYes.",
    "<|eot_id|>",
    "<end_of_turn>\n<start_of_turn>user",
    " </s>",
    "\n\nAssistant: Yes.",
)
ACCENTED = ("It’s “fine” now. ", "Café, façade – naïve. ", "Voilà: 5 € – done. ")


class Row(NamedTuple):
    """A row under damage; a prompt may become a list of messages."""

    kind: str
    prompt: str | list[Message]
    chosen: str
    rejected: str
    split: str = "train"


Damaged = list[Row]  # what takes the place of a row: itself, changed, and rows that are added
Plant = Callable[[Random, Row], Damaged | None]  # None: not a row on which this can be planted


def empty(rng: Random, row: Row) -> Damaged:
    nothing = rng.choice(["", " ", "\n\n", "\t", "\u200b"])
    return [row._replace(**{rng.choice(["chosen", "rejected"]): nothing})]


def equal(rng: Random, row: Row) -> Damaged:
    return [row._replace(chosen=row.rejected + rng.choice(["", "\n", " "]))]


def near_equal(rng: Random, row: Row) -> Damaged | None:
    if row.kind == "code":
        return [row._replace(rejected=row.chosen.replace("\n", "\n\n"))]
    text = row.chosen
    ways = [
        text + "!",
        f"**{text}**",
        f"“{text}”",
        text.rstrip(".。") + " …",
        text.upper(),
        text.replace(" ", "  ") + "!",
    ]
    changed = rng.choice(ways)
    return [row._replace(rejected=changed)] if changed.split() != text.split() else None


def echo(rng: Random, row: Row) -> Damaged:
    side = rng.choice(["chosen", "rejected"])
    answer = getattr(row, side)
    text = rng.choice([f"{row.prompt}\n{answer}", f"{answer}\n\n{row.prompt}", f"{row.prompt}"])
    return [row._replace(**{side: text})]


def markers(rng: Random, row: Row) -> Damaged:
    side = rng.choice(["chosen", "rejected"])
    return [row._replace(**{side: getattr(row, side) + rng.choice(MARKERS)})]


def alternation(rng: Random, row: Row) -> Damaged:
    user = {"role": "user", "content": str(row.prompt)}
    answer = {"role": "assistant", "content": "One moment."}
    rules = {"role": "system", "content": "Be brief."}
    ways = ([user, user], [user, answer, answer, user], [answer, user], [user, answer, rules, user])
    return [row._replace(prompt=rng.choice(ways))]


def mojibake(rng: Random, row: Row) -> Damaged | None:
    side = rng.choice(["prompt", "chosen", "rejected"])
    text = str(getattr(row, side))
    if text.isascii():
        text = rng.choice(ACCENTED) + text
    wrong = _misread(text)
    return [row._replace(**{side: wrong})] if wrong != text else None


def _misread(text: str) -> str:
    """UTF-8 read as Windows-1252, as most software does it."""
    return "".join(
        bytes([b]).decode("cp1252", "ignore") or bytes([b]).decode("latin-1") for b in text.encode()
    )


def swapped(rng: Random, row: Row) -> Damaged:
    return [row, row._replace(chosen=row.rejected, rejected=row.chosen)]


def both_ways(rng: Random, row: Row) -> Damaged:
    third = (
        f"{row.rejected} {rng.choice(['No.', 'Never.', '不。', 'Nein.'])} {rng.randint(0, 10**6)}"
    )
    if rng.random() < 0.5:
        return [row, row._replace(chosen=row.rejected, rejected=third)]
    return [row, row._replace(chosen=third, rejected=row.chosen)]


def duplicate(rng: Random, row: Row) -> Damaged:
    return [row, rng.choice([row, row._replace(chosen=row.chosen + " ")])]


def near_duplicate(rng: Random, row: Row) -> Damaged | None:
    copy = _reworded(rng, row)
    return [row, copy] if copy else None


def leak(rng: Random, row: Row) -> Damaged:
    other = row._replace(split="test")
    how = rng.randint(0, 2)
    if how == 0:
        return [row, other]
    if how == 1 or not (copy := _reworded(rng, other)):
        return [row, other._replace(chosen=row.rejected[::-1], rejected=row.chosen[::-1])]
    return [row, copy]


def truncated(rng: Random, row: Row) -> Damaged | None:
    """One side ends somewhere in its second half, not where a sentence does."""
    side = rng.choice(["chosen", "rejected"])
    text = getattr(row, side)
    if row.kind not in PROSE:
        return None
    cut = text[: rng.randint(len(text) // 2, len(text) - 4)].rstrip()
    return [row._replace(**{side: cut})] if cut[-1] not in ".。!?！？" else None


def open_fence(rng: Random, row: Row) -> Damaged | None:
    side = rng.choice(["chosen", "rejected"])
    text = getattr(row, side)
    if "```\n" in text:
        return [row._replace(**{side: text.replace("\n```\n", "\n", 1)})]
    if row.kind == "code":
        return [row._replace(**{side: f"```python\n{text}"})] if "```" not in text else None
    return [row._replace(**{side: f"{text}\n```\nx = {rng.randint(0, 99)}"})]


def refusal(rng: Random, row: Row) -> Damaged:
    language = row.kind if row.kind in REFUSALS else "english"
    start = rng.choice(REFUSALS[language])
    return [row._replace(chosen=start + (row.chosen if rng.random() < 0.5 else ""))]


def _reworded(rng: Random, row: Row) -> Row | None:
    """The row with up to three words changed, still at 0.85 or more by its own runs of words."""
    joint, size, others = ("", 5, "茶书") if row.kind == "chinese" else (" ", 3, ("tea", "oak"))
    names = ("prompt", "chosen", "rejected")
    old = [list(getattr(row, n)) if not joint else getattr(row, n).split() for n in names]
    new = [list(words) for words in old]
    for _ in range(rng.randint(1, 3)):
        words = rng.choice([words for words in new if len(words) > 4] or new)
        words[rng.randrange(len(words))] = rng.choice(others)
    before, after = _runs(old, size), _runs(new, size)
    if before == after or len(before & after) < 0.85 * len(before | after):
        return None
    return row._replace(**dict(zip(names, map(joint.join, new), strict=True)))


def _runs(parts: list[list[str]], size: int) -> set[tuple[object, ...]]:
    return {
        (side, *words[i : i + size])
        for side, words in enumerate(parts)
        for i in range(len(words) - size + 1)
    }


PLANTS: dict[str, Plant] = {
    plant.__name__: plant
    for plant in (
        empty, equal, near_equal, echo, markers, alternation, mojibake, swapped, both_ways,
        duplicate, near_duplicate, leak, truncated, open_fence, refusal,
    )
}  # fmt: skip


class Field(NamedTuple):
    """Pairs by split, the places that were damaged by kind of damage, and the kind of each row."""

    pairs: dict[str, list[PreferencePair]]
    planted: dict[str, list[tuple[str, ...]]]  # each damage's places: one row, or those it joins
    kinds: dict[str, str]

    @property
    def damaged(self) -> set[str]:
        return {
            location
            for sets in self.planted.values()
            for locations in sets
            for location in locations
        }


def plant(
    rows: Iterable[CleanRow], rng: Random, share: float, plants: Mapping[str, Plant]
) -> Field:
    """Every kind of damage on `share` of the rows of each kind of text that can take it."""
    waiting = [Row(*row) for row in rows]
    rng.shuffle(waiting)
    count = {
        kind: max(round(share * sum(r.kind == kind for r in waiting)), 1)
        for kind in {r.kind for r in waiting}
    }
    left = {(name, kind): count[kind] for name in plants for kind in count}
    made: list[tuple[str, list[Row]]] = []
    for row in waiting:
        made.append(_damaged(row, rng, left, plants))
    rng.shuffle(made)
    return _relocated(made, rng)


def _damaged(
    row: Row, rng: Random, left: dict[tuple[str, str], int], plants: Mapping[str, Plant]
) -> tuple[str, list[Row]]:
    wanted = [name for name in plants if left[name, row.kind]]
    rng.shuffle(wanted)
    for name in wanted:
        if (result := plants[name](rng, row)) is not None:
            left[name, row.kind] -= 1
            return name, result
    return "", [row._replace(split=rng.choices(["train", "test"], [9, 1])[0])]


def _relocated(made: list[tuple[str, list[Row]]], rng: Random) -> Field:
    slots: dict[str, list[tuple[int, Row]]] = defaultdict(list)
    for number, (_, rows) in enumerate(made):
        for row in rows:
            slots[row.split].insert(rng.randint(0, len(slots[row.split])), (number, row))
    pairs: dict[str, list[PreferencePair]] = {"train": [], "test": []}
    locations, kinds = defaultdict(list), {}
    for split in pairs:
        for line, (number, row) in enumerate(slots[split], start=1):
            location = f"{split}.jsonl:{line}"
            answers = ({"role": "assistant", "content": t} for t in (row.chosen, row.rejected))
            pairs[split].append(PreferencePair(row.prompt, *answers, location))
            locations[number].append(location)
            kinds[location] = row.kind
    planted: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for number, (name, _) in enumerate(made):
        if name:
            planted[name].append(tuple(locations[number]))
    return Field(pairs, planted, kinds)


def hits_of(field: Field, findings: Iterable[Finding]) -> tuple[dict[str, list[bool]], set[str]]:
    """Whether each damage was named, all of its rows, by its own finding; and clean rows named."""
    named = {finding.name: set(finding.rows) for finding in findings}
    hits = {
        name: [named.get(name, set()).issuperset(locations) for locations in sets]
        for name, sets in field.planted.items()
    }
    every = {location for rows in named.values() for location in rows}
    return hits, every - field.damaged
