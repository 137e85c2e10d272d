"""`orpo-mlx sample`: answers of a base and its adapters to many prompts, in one file."""

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from orpo_mlx.cli.command import Output, config_command
from orpo_mlx.config.judging import SampleConfig
from orpo_mlx.config.words import words_of

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from orpo_mlx.sampling.sample import Sampled, SourceResult

INTERRUPTED = 130


@config_command("sample", SampleConfig)
def command(config: SampleConfig, output: Output) -> int:
    """Let a base and its adapters answer many prompts, and write all answers to one file.

    Each answer has its own random key, so that it is the same in any batch and after --resume.
    Prompts are given whole, as `generate` does, however long they are.

    \b
    Example:
      orpo-mlx sample --model ./base --adapter adapters/mine --prompts prompts.txt -n 4
    """
    from orpo_mlx.search.child import interrupted_with_parent
    from orpo_mlx.supervisor.signals import interrupting

    with output.progress() as report, interrupting(), interrupted_with_parent():
        from orpo_mlx.sampling.sample import SamplingStopped, sample

        try:
            sampled = sample(config, report)
        except SamplingStopped as stop:
            report.warn(_how_to_go_on(config, stop.answers))
            return INTERRUPTED
    facts = {"output": sampled.output, "prompts": sampled.prompts}
    output.result(facts | {"sources": [*map(_facts, sampled.sources)]}, _blocks(sampled))
    return 0


def _how_to_go_on(config: SampleConfig, answers: int) -> str:
    """What is kept of a sampling that was stopped, and the command that goes on with it."""
    if not answers:
        return "Stopped; no prompt was complete."
    words = ["orpo-mlx", "sample"]
    for name, field in SampleConfig.model_fields.items():
        usual = field.get_default(call_default_factory=True)
        if getattr(config, name) != usual and name not in ("resume", "overwrite"):
            words += words_of(SampleConfig, name, getattr(config, name))
    again = shlex.join([*words, "--resume"])
    return f"Stopped; {answers:,} answers are in {config.output}. Go on with: {again}"


def _facts(result: "SourceResult") -> dict[str, Any]:
    """A source as JSON."""
    from orpo_mlx.sampling.summary import summary_of

    return summary_of(result)._asdict()


def _blocks(sampled: "Sampled") -> "Iterator[str | RenderableType]":
    """A table, a sentence for each source with cut answers, and where the answers are."""
    from orpo_mlx.sampling.cut import cut_sentence

    yield _table(sampled)
    for result in sampled.sources:
        if text := cut_sentence(result.source, result.answers, result.gone_on):
            yield text
    yield f"Written: {sampled.output}"


def _table(sampled: "Sampled") -> "Table":
    from rich.table import Table
    from rich.text import Text

    from orpo_mlx.sampling.summary import summary_of

    names = ("source", "answers", "cut", "mean tokens", "mean log-prob")
    title = f"Answers to {sampled.prompts:,} prompt{'s' * (sampled.prompts != 1)}"
    table = Table(*names, title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for result in sampled.sources:
        row = summary_of(result)
        logp = "-" if row.mean_logp is None else f"{row.mean_logp:.3f}"
        name = Text(row.source)  # a folder may be called a[b]
        table.add_row(name, f"{row.answers}", f"{row.cut}", f"{row.mean_tokens:.0f}", logp)
    return table
