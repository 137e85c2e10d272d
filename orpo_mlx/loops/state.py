"""loops/NAME/loop.json: settings, sides of prompts, and how far each round is. No mlx."""

import datetime as dt
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from orpo_mlx.config.groups import BaseOptions
from orpo_mlx.config.judging import LoopConfig
from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.files import load_json_object, replacing, save_json
from orpo_mlx.judging.json_lines import JsonRow

LOOPS, LOOP_FILE = "loops", "loop.json"
Side = Literal["pairs", "verdict"]
Edits = Literal["keep", "drop"]
# Of one call, and not kept.
OF_A_CALL = {"name", "trust_remote_code", "edits", "judge", "host", "port", "open"}
# What all rounds have in common.
OF_THE_LOOP = {*BaseOptions.model_fields, "seed"} - OF_A_CALL
# What only training uses.
OF_TRAINING = {"train_config", "continue_last"}


class Round(JsonRow):
    """One round; `done` are its stages that came to their end, in order."""

    number: int  # from 1
    pair_prompts: list[str]  # ids
    verdict_prompts: list[str]
    done: list[str] = []  # noqa: RUF012  (copied by pydantic)
    ended: str | None = None  # ISO 8601
    adapter: bool = False  # whether it has trained one


class LoopState(JsonRow):
    """loop.json."""

    settings: dict[str, Any]  # options of loop, without those of a call
    sides: dict[str, Side]  # id of each prompt that was ever read -> its side
    rounds: list[Round]
    edits: Edits | None = None  # what becomes of edited answers next to thoughts, once decided
    thinking_off: bool = False  # edited answers without a thought are trained on

    @property
    def current(self) -> Round:
        """The last round."""
        return self.rounds[-1]

    def with_current(self, **changes: Any) -> "LoopState":
        """The same with changes of the last round."""
        last = self.current.model_copy(update=changes)
        return self.model_copy(update={"rounds": [*self.rounds[:-1], last]})


def loop_folder(name: str) -> Path:
    """Where a loop of that name is, relative to the current folder."""
    return Path(LOOPS) / name


def load_loop(folder: Path) -> LoopState | None:
    """The state of a loop, None before its first round; raises OrpoError for a damaged file."""
    file = folder / LOOP_FILE
    if not file.exists():
        return None
    try:
        return LoopState.model_validate(load_json_object(file))
    except ValidationError as error:
        fields = sorted({".".join(map(str, fault["loc"][:3])) for fault in error.errors()})
        raise OrpoError(f"{file} is damaged (wrong or missing: {', '.join(fields)}).") from None


def save_loop(folder: Path, state: LoopState) -> None:
    """Write loop.json as a whole."""
    with replacing(folder / LOOP_FILE) as new:
        save_json(new, state.model_dump())


def kept_settings(config: LoopConfig) -> dict[str, Any]:
    """What loop.json keeps of the options, as JSON has it."""
    return config.model_dump(mode="json", exclude=OF_A_CALL)


def settle_text(config: LoopConfig, state: LoopState | None) -> LoopConfig:
    """The options with a thinking switch and a date that hold for every model of the loop.

    An adapter has its own, from its training: unlike those of the base, a difference between their
    answers could be due to that. Thinking is on unless that was given, as for a base alone.
    """
    kept = state.settings if state else {}
    changes: dict[str, Any] = {}
    if config.thinking == "auto":
        changes["thinking"] = kept.get("thinking", "on")
    if config.template_date is None:
        today = dt.date.today().isoformat()
        changes["template_date"] = dt.date.fromisoformat(kept.get("template_date", today))
    return config.model_copy(update=changes)


def changed_options(state: LoopState, config: LoopConfig) -> set[str]:
    """The names of kept options that are others now."""
    now = kept_settings(config)
    return {name for name in now if state.settings.get(name) != now[name]}


def check_changes(state: LoopState, config: LoopConfig, *, is_judged: bool) -> None:
    """Raise OrpoError that names every option that contradicts those of the loop.

    All may change until the first vote of a loop, others than its model until that of a later
    round. A round that `is_judged` keeps its options, those of training once that is done.
    """
    names = sorted(changed_options(state, config) & _fixed(state, is_judged))
    if not names:
        return
    now = kept_settings(config)
    flags = [f"{_flag(n)}: was {state.settings.get(n)}, now {now[n]}" for n in names]
    what = f"round {state.current.number}, which has votes," if is_judged else "it"
    raise OrpoError(
        f"{collected(f'Loop {config.name} has other settings, and {what} keeps them:', flags)}\n"
        f"Leave them out (orpo-mlx loop {config.name}), or begin a loop of another name."
    )


def _fixed(state: LoopState, is_judged: bool) -> set[str]:
    """The options that may not change now."""
    if is_judged:
        return {*LoopConfig.model_fields} - (set() if state.current.adapter else OF_TRAINING)
    is_first = len(state.rounds) == 1 and not state.current.ended
    return set() if is_first else OF_THE_LOOP


def _flag(name: str) -> str:
    extra: Any = LoopConfig.model_fields[name].json_schema_extra
    return extra["flags"][-1] if extra["flags"] else f"--{name.replace('_', '-')}"
