"""`orpo-mlx loop`: a round of sampling, judging and training, and what it came to."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from orpo_mlx.cli.command import Output, config_command
from orpo_mlx.cli.flags import given_flags, settings_from
from orpo_mlx.cli.settings import Layer, build_config, load_config_file
from orpo_mlx.config.groups import BaseOptions, RunOptions
from orpo_mlx.config.judging import LoopConfig
from orpo_mlx.errors import OrpoError

# What a stage's training is given by the loop, not by a file.
OF_A_STAGE = {*BaseOptions.model_fields, *RunOptions.model_fields, "data", "adapter"}

if TYPE_CHECKING:
    from orpo_mlx.loops.stages import LoopResult
    from orpo_mlx.loops.state import Edits


def _settings(flags: dict[str, Any]) -> LoopConfig:
    """Flags over file over the loop's own settings over defaults."""
    name = given_flags(LoopConfig, flags).get("name")
    stored = None
    if name and len(name) == 1:
        from orpo_mlx.config.parsers import file_name
        from orpo_mlx.loops.state import LOOP_FILE, load_loop, loop_folder

        try:
            folder = loop_folder(file_name(name[0]))
        except ValueError:  # which the settings report
            return settings_from(LoopConfig, flags)
        if state := load_loop(folder):
            stored = Layer(str(folder / LOOP_FILE), state.settings)
    return settings_from(LoopConfig, flags, stored)


@config_command("loop", LoopConfig, read=_settings)
def command(config: LoopConfig, output: Output) -> int:
    """Run a round: answers, votes for pairs, training, answers, votes for a verdict.

    A round's adapter is trained from the base on the pairs of all rounds. The same command goes on
    with a round that was left, at the stage where it was, and then begins the next one; it needs no
    other options than NAME, since loops/NAME keeps them.

    \b
    Example:
      orpo-mlx loop evening --model ./base --prompts prompts.txt
    """
    from orpo_mlx.cli.judge import NEEDED
    from orpo_mlx.extras import import_extra
    from orpo_mlx.supervisor.signals import interrupting

    for module in NEEDED:
        import_extra(module, "judge")
    _check_files(config)
    with output.progress(mlx=False, bars=False) as report, interrupting():
        from orpo_mlx.loops.child import run_command
        from orpo_mlx.loops.stages import run_loop

        more = ["--quiet"] if output.quiet else []
        try:
            result = run_loop(
                config, lambda words: run_command([*words, *more]), _ask_edits, report
            )
        except KeyboardInterrupt:
            report.warn(f"Stopped. Go on with: orpo-mlx loop {config.name}")
            return 130
    output.result(result._asdict(), _lines(result))
    return 130 if result.stopped else 0


def _check_files(config: LoopConfig) -> None:
    """Raise OrpoError, before anybody votes, for files that a later stage would refuse."""
    from orpo_mlx.config.train import TrainConfig
    from orpo_mlx.data.reading.text_file import read_text

    if config.guidelines:
        read_text(config.guidelines, "--guidelines")
    if config.forget_text:
        from orpo_mlx.review.forgetting.paragraphs import load_paragraphs

        load_paragraphs(config.forget_text)
    if not config.train_config:
        return
    file, values = load_config_file(config.train_config, "--train-config")
    own = sorted(OF_A_STAGE & values.keys())
    problems = [f"{file}: {', '.join(own)}: set by the loop; leave out."] if own else []
    others = {name: value for name, value in values.items() if name not in own}
    set_here = {"model": config.model, "data": ["pairs.jsonl"], "output": "adapter"}
    build_config(TrainConfig, [Layer(file, others), Layer("", set_here)], problems)


def _ask_edits() -> "Edits":
    """Keep the answers that a judge wrote, or not; raises OrpoError where nobody can be asked."""
    question = (
        "Answers that you edited have no thought, others do. Keep the edits and train with "
        "thinking off, or drop them?"
    )
    if not all(stream and stream.isatty() for stream in (sys.stdin, sys.stderr)):
        raise OrpoError(f"{question} Give --edits keep or --edits drop.")
    answer: Edits = click.prompt(question, type=click.Choice(["keep", "drop"]), err=True)
    return answer


def _lines(result: "LoopResult") -> Iterator[str]:
    """The verdict, its page, and what to do next."""
    if result.stopped:
        yield f"Stopped. Go on with: orpo-mlx loop {result.name}"
        return
    yield f"Round {result.round} of {result.name} is over."
    yield from result.sentences
    if result.page:
        last = result.continued
        how = f", trained further from {last} (--continue)" if last else ""
        yield f"The adapter: {result.adapter}{how}"
        yield f"The verdict's page: {result.page}"
    yield from result.advice
