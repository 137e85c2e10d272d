"""`orpo-mlx runs show`: one run whole."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpo_mlx.cli.command import Output, config_command
from orpo_mlx.cli.runs_list import step_text
from orpo_mlx.config.runs import RunsShowConfig
from orpo_mlx.errors import OrpoError

if TYPE_CHECKING:
    from orpo_mlx.review.runs.show import RunView

METRICS_SHOWN = ("loss", "nll_loss", "nll_loss/sft", "rewards/accuracies", "rewards/margins")


@config_command("show", RunsShowConfig)
def command(config: RunsShowConfig, output: Output) -> None:
    """Show a run: its settings, state, metrics, checkpoints, answers.

    \b
    Example:
      orpo-mlx runs show adapters/mine --png curves.png
    """
    from orpo_mlx.review.runs.show import curves_of, view_of

    check_new_file(config.png, overwrite=config.overwrite)
    view = view_of(config.run)
    if config.png:
        save_image(config.png, curves_of(config.run))
    written = [f"{config.png}: the curves"] if config.png else []
    output.result(view.as_dict() | {"png": config.png}, [*view_lines(view), *written])


def check_new_file(file: Path | None, *, overwrite: bool) -> None:
    """Raise OrpoError for a file that is there and was not to be replaced."""
    if file is not None and file.exists() and not overwrite:
        raise OrpoError(f"{file} exists. Replace it with --overwrite, or name another file.")


def save_image(file: Path, content: bytes) -> None:
    from orpo_mlx.files import replacing

    with replacing(file) as new:
        new.write_bytes(content)


def view_lines(view: "RunView") -> Iterator[str]:
    """A run as text."""
    from orpo_mlx.files import size_text

    status = view.status
    reason = f" ({status.reason})" if status.reason else ""
    yield f"{status.folder}: {status.state or 'state not known'}{reason}"
    yield f"  step       {step_text(status.step, status.steps)}"
    yield f"  base       {status.base or 'not known'}"
    yield f"  data       {', '.join(status.data) or 'not known'}"
    if view.adapter_step is not None:
        yield f"  adapter    after step {view.adapter_step}"
    yield f"  size       {size_text(status.size_bytes)}"
    if view.settings:
        yield "Settings other than the defaults:"
        width = max(map(len, view.settings))
        yield from (f"  {name:{width}}  {value_text(v)}" for name, v in view.settings.items())
    yield from _metric_lines(view)
    if view.checkpoints:
        yield "Checkpoints:"
        for one in view.checkpoints:
            best = "  the best validation" if one.best else ""
            yield f"  {one.folder.name}  {size_text(one.size_bytes)}{best}"
    if view.answers:
        yield f"Answers to the sample prompts at step {view.answers[0]['step']}:"
        for answer in view.answers:
            cut = " [cut]" if answer["finish"] == "length" else ""
            yield f"  > {_prompt_text(answer['prompt'])}"
            yield from (f"    {line}" for line in (answer["answer"] + cut).splitlines())
    yield "Files:"
    width = max(map(len, view.files), default=0)
    yield from (f"  {name:{width}}  {size_text(size):>10}" for name, size in view.files.items())


def _metric_lines(view: "RunView") -> Iterator[str]:
    if not view.training:
        return
    step = f"at step {view.training['step']}"
    yield f"Metrics {step}:          training" + "  held-out   before" * bool(view.held_out)
    for name in METRICS_SHOWN:
        values = [view.training.get(name)]
        if view.held_out:
            values += [rows.get(f"eval_{name}") for rows in (view.held_out, view.start)]
        if all(value is None for value in values):
            continue
        cells = [f"{v:10.4f}" if v is not None else " " * 10 for v in values]
        yield f"  {name:24}{''.join(cells)}"


def _prompt_text(prompt: Any) -> str:
    """A prompt in one line: of messages the last."""
    text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content", ""))
    return " ".join(text.split())


def value_text(value: Any) -> str:
    """A setting as a person would write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
