"""`orpo-mlx sweep`: many runs of train with other settings, and the best of them."""

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from orpo_mlx.cli.command import Output, config_command
from orpo_mlx.cli.flags import given_flags, settings_from
from orpo_mlx.cli.settings import Layer
from orpo_mlx.config.sweep import SweepConfig

if TYPE_CHECKING:
    from rich.table import Table

    from orpo_mlx.search.sweep import Sweep


def _settings(flags: dict[str, Any]) -> SweepConfig:
    """Flags over file over defaults; with --resume all over the sweep's own settings."""
    given = {**(file.values if (file := flags["config_file"]) else {})}
    given |= given_flags(SweepConfig, flags)
    stored = None
    if given.get("resume") is True and given.get("output"):
        from pathlib import Path

        from orpo_mlx.search.sweep import SETTINGS, load_sweep_settings

        output = Path(str(given["output"]))
        stored = Layer(str(output / SETTINGS), load_sweep_settings(output))
    return settings_from(SweepConfig, flags, stored)


@config_command("sweep", SweepConfig, read=_settings)
def command(config: SweepConfig, output: Output) -> int:
    """Search settings of train: each trial is a run, compared by its held-out loss.

    Values are drawn at random (optuna), hopeless trials end early (its median pruner), and a trial
    that dies is a failed one. The same command goes on with a sweep that was stopped. Trials are
    compared by the loss at --beta, whichever beta they train with.

    \b
    Example:
      orpo-mlx sweep --model ./base --data pairs.jsonl --output sweeps/mine --trials 20
    """
    with output.progress(mlx=False, bars=False) as report:
        from orpo_mlx.search.sweep import sweep

        result = sweep(config, report)
    best = result.best._asdict() if result.best else None
    facts = result._asdict() | {"trials": [t._asdict() for t in result.trials], "best": best}
    output.result(facts | {"command": _command(result)}, _text(result))
    return 130 if result.stopped else 0


def _command(result: "Sweep") -> str:
    """How to train with the best trial's settings; "" before there is one."""
    from orpo_mlx.search.sweep import options_of_trial

    if result.best is None:
        return ""
    words = options_of_trial(result.output, result.best.number)
    return f"orpo-mlx train {shlex.join(words)} --output FOLDER"


def _text(result: "Sweep") -> Iterator["str | Table"]:
    """The trials, the best first, and what to do with it."""
    if result.trials:
        yield _table(result)
    if result.best:
        yield f"The best trial's adapter: {result.output / f'trial-{result.best.number:03d}'}"
        yield f"Train with its settings: {_command(result)}"
    if result.stopped:
        yield f"Stopped. Go on with: orpo-mlx sweep --resume --output {result.output}"


def _table(result: "Sweep") -> "Table":
    from rich.table import Table

    names = list(dict.fromkeys(name for trial in result.trials for name in trial.drawn))
    title = f"Trials by held-out loss at beta {result.beta:g}"
    table = Table(title=title, title_justify="left")
    table.add_column("trial")
    table.add_column("loss", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    for trial in sorted(result.trials, key=lambda t: (t.loss is None, t.loss, t.number)):
        loss = trial.state if trial.loss is None else f"{trial.loss:.4f}"
        values = [trial.drawn.get(name, "") for name in names]
        shown = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in values]
        table.add_row(f"{trial.number:03d}", loss, *shown)
    return table
