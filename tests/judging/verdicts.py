"""Sessions for a verdict and the votes of them, from an outcome a prompt."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

from orpo_mlx.judging.answers import SampledAnswer
from orpo_mlx.judging.plan import PlannedItem
from orpo_mlx.judging.session import SessionFacts
from orpo_mlx.judging.votes import Choice, Vote
from tests.judging.sessions import TIME, answer, source, vote

BASE, ADAPTER = "base", "round-1"
CHOICES: dict[str, Choice] = {"tie": "tie", "bad": "both_bad", "skip": "skip"}


def answers_of(prompts: int, model: str = "m", **changes: Any) -> dict[str, SampledAnswer]:
    """An answer of a base and of its adapter to each prompt; `changes` is the adapter's source."""
    adapter = {"adapter": f"adapters/{ADAPTER}"} | changes
    sources = source(BASE, model=model), source(ADAPTER, model=model, **adapter)
    rows = [
        answer(f"{who.name} says {n}.", f"Prompt {n}?", name=who.name, source=who)
        for who in sources
        for n in range(prompts)
    ]
    return {row.id: row for row in rows}


def ids_of(prompt: int) -> tuple[str, str]:
    return f"{BASE}/Prompt {prompt}?/0", f"{ADAPTER}/Prompt {prompt}?/0"


def session_facts(
    prompts: int, *, equal: int = 0, ended: bool = True, **changes: object
) -> SessionFacts:
    """A session whose last `equal` prompts have equal answers; sides alternate."""
    items = []
    for number in range(prompts - equal):
        first, second = ids_of(number)[:: 1 if number % 2 else -1]
        items.append(PlannedItem(id=f"item-{number}", first=first, second=second))
    values = {
        "purpose": "verdict",
        "seed": 0,
        "per_prompt": 1,
        "prompts": prompts,
        "items": items,
        "equal": [ids_of(n) for n in range(prompts - equal, prompts)],
        "answers_sum": "0",
        "ended": TIME if ended else None,
    }
    return SessionFacts.model_validate(values | changes)


def choice_for(outcome: str, item: PlannedItem) -> Choice:
    """`adapter` or `base` is who is preferred; else what CHOICES has."""
    if outcome in CHOICES:
        return CHOICES[outcome]
    preferred = ADAPTER if outcome == "adapter" else BASE
    return "first" if item.first.startswith(f"{preferred}/") else "second"


def votes_of(
    facts: SessionFacts, outcomes: Sequence[str], judges: Sequence[str] = ("you",)
) -> list[Vote]:
    """A vote on each item in turn, by judges in turn."""
    items = zip(facts.items, outcomes, cycle(judges), strict=False)
    return [
        vote(item.id, item.first, item.second, choice_for(outcome, item), judge=judge)
        for item, outcome, judge in items
    ]
