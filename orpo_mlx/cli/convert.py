"""`orpo-mlx convert`: a Hugging Face or GGUF model to MLX, or an MLX folder back."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from orpo_mlx.cli.command import Output, config_command
from orpo_mlx.config.interop import ConvertConfig
from orpo_mlx.files import size_text

if TYPE_CHECKING:
    from rich.table import Table

    from orpo_mlx.interop.convert.divergence import Divergence
    from orpo_mlx.interop.convert.to_mlx import Converted


@config_command("convert", ConvertConfig)
def command(config: ConvertConfig, output: Output) -> None:
    """Make an MLX folder of a Hugging Face or GGUF model, quantized if asked, or back.

    \b
    Examples:
      orpo-mlx convert Qwen/Qwen3-4B --output ./qwen3-4bit --bits 4 --report
      orpo-mlx convert ./qwen3-4bit --output ./qwen3 --dequantize --dtype bfloat16
    """
    with output.progress() as report:
        from orpo_mlx.interop.convert.to_mlx import convert

        done = convert(config, report)
    divergence = done.divergence._asdict() if done.divergence else None
    output.result(done._asdict() | {"divergence": divergence}, _text(done))


def _text(done: "Converted") -> Iterator["str | Table"]:
    yield (
        f"{done.folder}: {size_text(done.size_bytes)} of weights, "
        f"{done.bits_per_weight:.2f} bits each."
    )
    if done.divergence:
        yield _report_table(done.divergence)


def _report_table(divergence: "Divergence") -> "Table":
    from rich.table import Table

    table = Table(
        title=f"Over {divergence.tokens:,} tokens of a bundled text", title_justify="left"
    )
    table.add_column("measure")
    table.add_column("original", justify="right")
    table.add_column("converted", justify="right")
    table.add_row(
        "perplexity", f"{divergence.perplexity_original:.3f}", f"{divergence.perplexity:.3f}"
    )
    table.add_row("KL from the original, nats", "", f"{divergence.kl:.5f}")
    table.add_row("same likeliest next token", "", f"{divergence.top1_agreement:.1%}")
    return table
