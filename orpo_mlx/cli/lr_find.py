"""`orpo-mlx lr-find`: short runs at several learning rates, and the rate to take."""

import math
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from orpo_mlx.cli.command import Output, config_command
from orpo_mlx.config.search import LrFindConfig
from orpo_mlx.config.train import LearnOptions
from orpo_mlx.config.words import words_of

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from orpo_mlx.search.lr_find import Search
    from orpo_mlx.search.short_runs import ShortRun


@config_command("lr-find", LrFindConfig)
def command(config: LrFindConfig, output: Output) -> int:
    """Suggest a learning rate: short runs at several rates on your own pairs.

    Takes the options of train, for the run to come: base, pairs, adapter, optimizer, batch size,
    steps. It begins at --learning-rate (or its default) and takes at most 60 steps and 12
    validations of at most 32 held-out pairs; nothing is kept of them but a picture. What it
    suggests is a short-run optimum, scaled to the run's steps; a sweep of whole runs knows better.

    \b
    Example:
      orpo-mlx lr-find --model ./base --data pairs.jsonl
    """
    check_picture(config)
    with output.progress() as report:
        from orpo_mlx.search.lr_find import lr_find

        searches = lr_find(config, [report])
        stopped = not searches or any(search.stopped for search in searches)
        if searches:
            report.log(save_picture(config, searches))
    facts = {"plot": config.plot, "searches": [facts_of(search) for search in searches]}
    output.result(facts, blocks(config, searches))
    return 130 if stopped else 0


def check_picture(config: LrFindConfig) -> None:
    """Before minutes of work: raise OrpoError for a file that is in the way."""
    from orpo_mlx.files import check_writable
    from orpo_mlx.review.pairs.read_sources import refuse_existing

    refuse_existing([config.plot], "--plot", config.overwrite, config.data)
    check_writable(config.plot.parent)


def save_picture(config: LrFindConfig, searches: "Sequence[Search]") -> str:
    """Write the picture; returns where it is, or why there is none."""
    from orpo_mlx.errors import OrpoError
    from orpo_mlx.files import replacing
    from orpo_mlx.search.picture import draw_searches

    try:
        content = draw_searches(searches)
    except OrpoError as error:
        return f"There is no picture: {error}"
    with replacing(config.plot) as file:
        file.write_bytes(content)
    return f"Picture written: {config.plot}"


def facts_of(search: "Search") -> dict[str, Any]:
    """A search as JSON."""
    return {
        "beta": search.beta,
        "learning_rate": search.suggestion,
        "reason": search.reason,
        "stopped": search.stopped,
        "steps": search.steps,
        "validations": search.validations,
        "before": row_of(search.before),
        "runs": [row_of(run) for run in search.runs],
    }


def row_of(run: "ShortRun") -> dict[str, Any]:
    """A run as JSON; what is compared with the start is a mean and its standard error."""
    values = run._asdict() | {"fall": list(run.fall), "rise": list(run.rise)}
    names = {"fall": "held_out_loss_fall", "rise": "log_odds_rise"}
    return {names.get(n, n): value for n, value in values.items()}


def blocks(config: LrFindConfig, searches: "Sequence[Search]") -> "Iterator[str | RenderableType]":
    """A table, the suggestion and its reason for each search, and the command to copy."""
    for search in searches:
        yield table(search)
        yield search.reason
    rates = [search.suggestion for search in searches if search.beta == config.beta]
    if rates and rates[0]:
        yield f"Suggested: --learning-rate {rates[0]:g}"
        yield train_command(config, rates[0])


def table(search: "Search") -> "Table":
    """Every run, by rate and steps, below the untrained start."""
    from rich.table import Table

    names = ("learning rate", "steps", "train loss", "held-out loss", "accuracy", "log odds", "")
    grid = Table(*names, title=f"beta {search.beta:g}", title_justify="left")
    for column in grid.columns[:-1]:
        column.justify = "right"
    runs = sorted(search.runs, key=lambda run: (run.steps, run.learning_rate))
    for run in [search.before, *runs]:
        numbers = (run.train_loss, run.held_out_loss, run.accuracy, run.log_odds)
        cells = [f"{n:.3f}" if math.isfinite(n) else "-" for n in numbers]
        rate = f"{run.learning_rate:.2g}" if run.steps else "before"
        grid.add_row(rate, str(run.steps), *cells, "best" if run is search.best else "")
    return grid


def train_command(config: LrFindConfig, rate: float) -> str:
    """The command that trains with a rate: the options that are not the defaults, as flags."""
    words = ["orpo-mlx", "train"]
    for name, field in LearnOptions.model_fields.items():
        usual = field.get_default(call_default_factory=True)
        if name != "learning_rate" and getattr(config, name) != usual:
            words += words_of(LearnOptions, name, getattr(config, name))
    return shlex.join([*words, "--learning-rate", f"{rate:g}", "--output", "adapters/mine"])
