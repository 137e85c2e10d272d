"""`orpo-mlx runs clean`: remove what nothing needs any more."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from orpo_mlx.cli.command import Output, config_command
from orpo_mlx.cli.streams import printable
from orpo_mlx.config.runs import RunsCleanConfig
from orpo_mlx.errors import OrpoError

if TYPE_CHECKING:
    from orpo_mlx.review.runs.clean import CleanPlan, Removable


@config_command("clean", RunsCleanConfig)
def command(config: RunsCleanConfig, output: Output) -> None:
    """Remove checkpoints and caches that nothing needs any more.

    Of each run the last checkpoint and the best one stay, and with them adapter, settings and
    metrics. What would go is shown, and asked about. A run that is going on is left alone.

    \b
    Example:
      orpo-mlx runs clean adapters/mine
    """
    from orpo_mlx.review.runs.clean import clean, plan_clean
    from orpo_mlx.review.runs.status import find_runs

    runs, _ = find_runs(config.folders)
    plan = plan_clean(runs)
    removed: list[Removable] = []
    for line in plan_lines(plan):
        click.echo(printable(line), err=output.as_json)
    if plan.removable:
        if not (config.yes or _confirmed(plan)):
            raise OrpoError("Nothing was removed.")
        with output.progress(mlx=False, bars=False) as report:
            clean(plan, report, removed.append)
    output.result(_facts(removed, plan), [_summary(removed)])


def plan_lines(plan: "CleanPlan") -> Iterator[str]:
    """What would go, by run, with sizes."""
    from orpo_mlx.files import size_text

    for run, items in plan.removable.items():
        yield f"{run}:"
        for item in items:
            yield f"  {item.path.relative_to(run)}  {size_text(item.size_bytes)}  {item.why}"
    yield from plan.notes


def _confirmed(plan: "CleanPlan") -> bool:
    from orpo_mlx.files import size_text

    if not (sys.stdin and sys.stdin.isatty()):
        raise OrpoError("Nothing was removed: there is nobody to ask. Remove it with --yes.")
    return click.confirm(f"Remove {size_text(plan.size_bytes)}?", err=True)


def _facts(removed: "list[Removable]", plan: "CleanPlan") -> dict[str, Any]:
    return {
        "removed": [item._asdict() for item in removed],
        "size_bytes": sum(item.size_bytes for item in removed),
        "notes": plan.notes,
    }


def _summary(removed: "list[Removable]") -> str:
    from orpo_mlx.files import size_text

    if not removed:
        return "Nothing to remove."
    return f"Removed {size_text(sum(item.size_bytes for item in removed))}."
