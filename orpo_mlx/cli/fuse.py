"""`orpo-mlx fuse`: merge adapters into their base, for tools that take full models."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from orpo_mlx.cli.command import Output, config_command
from orpo_mlx.config.interop import FuseConfig
from orpo_mlx.files import size_text

if TYPE_CHECKING:
    from rich.table import Table

    from orpo_mlx.interop.fuse.drift import Drift
    from orpo_mlx.interop.fuse.merge import Fused


@config_command("fuse", FuseConfig)
def command(config: FuseConfig, output: Output) -> None:
    """Merge an adapter into its base: one folder that needs no adapter.

    The base keeps its layout, MLX or Hugging Face. Quantized layers that the adapter changes are
    quantized again as they were, which costs some of what was learned; --dequantize costs nothing.
    Several adapters are added up, each scaled by its share.

    \b
    Examples:
      orpo-mlx fuse --adapter adapters/mine --output fused/mine
      orpo-mlx fuse --adapter adapters/a:0.7 --adapter adapters/b:0.3 --output fused/both
    """
    with output.progress() as report:
        from orpo_mlx.interop.fuse.merge import fuse

        done = fuse(config, report)
    drift = done.drift._asdict() if done.drift else None
    output.result(done._asdict() | {"drift": drift}, _text(done))


def _text(done: "Fused") -> Iterator["str | Table"]:
    """What was written, in some lines."""
    yield f"{done.output}: {size_text(done.size_bytes)}, {done.changed} weights changed."
    if done.requantized and done.survived is not None and done.error is not None:
        yield (
            f"{done.requantized} were quantized again: {done.survived:.0%} of the change survives, "
            f"with a rounding error of {done.error:.2g} times its size."
        )
    if done.checked:
        yield f"All {done.checked} weights are base + adapter, as mlx-lm loads them."
    if done.drift:
        yield _drift_table(done.drift)


def _drift_table(drift: "Drift") -> "Table":
    from rich.table import Table

    title = f"From base + adapter, {drift.tokens:,} held-out tokens"
    table = Table(title=title, title_justify="left")
    table.add_column("measure")
    table.add_column("base", justify="right")
    table.add_column("fused", justify="right")
    table.add_row("KL, nats a token", f"{drift.kl_base:.5f}", f"{drift.kl_fused:.5f}")
    table.add_row("same likeliest next token", f"{drift.top1_base:.1%}", f"{drift.top1_fused:.1%}")
    return table
