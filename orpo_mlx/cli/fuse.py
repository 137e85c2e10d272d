"""`orpo-mlx fuse`: adapters into their base, for places that take whole models."""

import json
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import click

from orpo_mlx.cli.flags import ConfigCommand, config_options, output_options, settings_from
from orpo_mlx.config.interop import FuseConfig
from orpo_mlx.files import size_text

if TYPE_CHECKING:
    from rich.table import Table

    from orpo_mlx.interop.fuse.drift import Drift
    from orpo_mlx.interop.fuse.merge import Fused


@click.command("fuse", cls=ConfigCommand)
@config_options(FuseConfig)
@output_options
def command(as_json: bool, quiet: bool, **flags: Any) -> None:
    """Put an adapter into its base: one folder that needs no adapter.

    The base keeps its layout, MLX or Hugging Face. Quantized layers that the adapter changes are
    quantized again as they were, which costs some of what was learnt; --dequantize costs nothing.
    Several adapters are added, each by its share.

    \b
    Examples:
      orpo-mlx fuse --adapter adapters/mine --output fused/mine
      orpo-mlx fuse --adapter adapters/a:0.7 --adapter adapters/b:0.3 --output fused/both
    """
    config = settings_from(FuseConfig, flags)
    from orpo_mlx import backend

    backend.prepare()
    from rich.console import Console

    from orpo_mlx.cli.progress import Display

    with redirect_stdout(sys.stderr), Display(quiet=quiet) as display:
        from orpo_mlx.interop.fuse.merge import fuse

        done = fuse(config, display)
    if as_json:
        drift = done.drift._asdict() if done.drift else None
        click.echo(json.dumps(done._asdict() | {"output": str(done.output), "drift": drift}))
        return
    click.echo(summary(done))
    if done.drift:
        Console().print(_drift_table(done.drift))


def summary(done: "Fused") -> str:
    """What was written, in some lines."""
    lines = [f"{done.output}: {size_text(done.size_bytes)}, {done.changed} weights changed."]
    if done.requantized and done.survived is not None and done.error is not None:
        lines.append(
            f"{done.requantized} were quantized again: {done.survived:.0%} of the change survives, "
            f"with rounding of {done.error:.2g} times its size."
        )
    if done.checked:
        lines.append(f"All {done.checked} weights are base + adapter, as mlx-lm loads them.")
    return "\n".join(lines)


def _drift_table(found: "Drift") -> "Table":
    from rich.table import Table

    title = f"From base + adapter, {found.tokens:,} held-out tokens"
    table = Table(title=title, title_justify="left")
    table.add_column("measure")
    table.add_column("base", justify="right")
    table.add_column("fused", justify="right")
    table.add_row("KL, nats a token", f"{found.kl_base:.5f}", f"{found.kl_fused:.5f}")
    table.add_row("same likeliest next token", f"{found.top1_base:.1%}", f"{found.top1_fused:.1%}")
    return table
