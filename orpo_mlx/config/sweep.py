"""Options of `orpo-mlx sweep`: those of train, what is searched, and where."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

from pydantic import BeforeValidator, ValidationError, model_validator

from orpo_mlx.config.groups import option
from orpo_mlx.config.parsers import texts
from orpo_mlx.config.train import TrainConfig

# What does not change which held-out pairs there are, nor what their loss means.
SEARCHABLE = (
    "learning_rate", "beta", "rank", "alpha", "rslora", "dropout", "num_layers", "batch_size",
    "steps", "epochs", "optimizer", "schedule", "warmup", "weight_decay", "max_grad_norm",
)  # fmt: skip
DEFAULT_SEARCH = ("learning_rate=1e-5:5e-4:log", "beta=0.05:0.5:log")


class NumberRange(NamedTuple):
    """The numbers from low to high, drawn evenly, or evenly in their logarithms."""

    low: float
    high: float
    log: bool
    whole: bool  # whole numbers alone


class Choices(NamedTuple):
    """Some values, drawn evenly."""

    values: tuple[Any, ...]


class SweepConfig(TrainConfig):
    """Options of `orpo-mlx sweep`."""

    output: Path = option(
        "Run",
        ...,
        "Folder to write: a run folder for each trial, the study and its plots. A sweep that is "
        "there goes on.",
        flags=("--output",),
        metavar="FOLDER",
    )
    overwrite: bool = option("Run", False, "Replace the sweep in --output.")
    resume: bool = option(
        "Run", False, "Go on with the sweep in --output, by its own settings where none are given."
    )
    trials: int = option("Run", 20, "Trials of the sweep, each a run of train.", ge=1, le=10_000)
    search: Annotated[list[str], BeforeValidator(texts)] = option(
        "Run",
        list(DEFAULT_SEARCH),
        "What is searched: NAME=LOW:HIGH, NAME=LOW:HIGH:log for rates, NAME=A,B,C; repeatable. "
        f"NAME is one of {', '.join(SEARCHABLE)}.",
        metavar="NAME=VALUES",
        shown_default=" and ".join(DEFAULT_SEARCH),
        min_length=1,
    )

    @model_validator(mode="after")
    def _searches_what_train_takes(self) -> Self:
        wrong, names = [], [text.partition("=")[0].strip() for text in self.search]
        for text in self.search:
            try:
                name, values = _parsed(text)
                _check_values(self, name, values)
            except ValueError as error:
                wrong.append(f"--search {text}: {error}")
        wrong += [f"--search {name}: is given twice" for name in names if names.count(name) > 1]
        if wrong:
            raise ValueError("\n".join(dict.fromkeys(wrong)))
        return self

    @property
    def space(self) -> dict[str, NumberRange | Choices]:
        """What is searched, by the option's name."""
        return dict(map(_parsed, self.search))


def settings_of_trial(values: Mapping[str, Any], drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Options of train from those of a sweep and a draw; one of steps replaces one of epochs."""
    own = SweepConfig.model_fields.keys() - TrainConfig.model_fields.keys()
    replaced = {{"steps": "epochs", "epochs": "steps"}.get(name) for name in drawn}
    kept = {n: v for n, v in values.items() if n not in own | replaced and v is not None}
    return {**kept, **drawn}


def _parsed(text: str) -> tuple[str, NumberRange | Choices]:
    """`rank=8,16` and `learning_rate=1e-5:1e-3:log`; raises ValueError for another form."""
    name, equals, given = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not given.strip():
        raise ValueError("must be NAME=LOW:HIGH, NAME=LOW:HIGH:log or NAME=A,B,C")
    if name not in SEARCHABLE:
        raise ValueError(f"{name} cannot be searched (allowed: {', '.join(SEARCHABLE)})")
    if ":" in given:
        return name, _span(name, given)
    values = tuple(dict.fromkeys(part.strip() for part in given.split(",") if part.strip()))
    return name, Choices(tuple(_value(name, value) for value in values))


def _span(name: str, given: str) -> NumberRange:
    low, high, *rest = (part.strip() for part in given.split(":"))
    if rest not in ([], ["log"]):
        raise ValueError("after LOW:HIGH, only :log is known")
    ends = [_value(name, end) for end in (low, high)]
    if not all(type(end) in (int, float) for end in ends):
        raise ValueError("LOW and HIGH must be numbers")
    if not ends[0] < ends[1]:
        raise ValueError("LOW must be less than HIGH")
    if rest and ends[0] <= 0:
        raise ValueError("on a logarithmic scale, LOW must be more than 0")
    return NumberRange(ends[0], ends[1], bool(rest), all(type(end) is int for end in ends))


def _value(name: str, text: str) -> Any:
    """A value as train reads it; raises ValueError with what train has against it."""
    needed = {"model": "-", "data": ["-"], "output": "-", "micro_batch_size": 1}
    try:
        return getattr(TrainConfig.model_validate(needed | {name: text}), name)
    except ValidationError as error:
        raise ValueError(f"{text}: {_why(error)}") from None


def _check_values(config: SweepConfig, name: str, values: NumberRange | Choices) -> None:
    """Raise ValueError if train takes a value alone, but not next to the other settings."""
    for value in values.values if isinstance(values, Choices) else values[:2]:
        try:
            TrainConfig.model_validate(settings_of_trial(config.model_dump(), {name: value}))
        except ValidationError as error:
            raise ValueError(f"{value}: {_why(error)}") from None


def _why(error: ValidationError) -> str:
    """What is wrong first, in pydantic's words or in those of our own checks."""
    fault = error.errors()[0]
    return str(fault.get("ctx", {}).get("error", "")) or fault["msg"].lower()
