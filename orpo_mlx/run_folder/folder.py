"""The run folder: its files, what may be written there, and putting an earlier run aside.

Imports no mlx, so that the command line can look at a run before anything is loaded.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from orpo_mlx.config.groups import RunOptions
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback, Notice
from orpo_mlx.files import check_folder, check_writable, is_occupied, remove, write_error
from orpo_mlx.leftovers import is_busy
from orpo_mlx.tokenizer_files import TOKENIZER_FILES

CONFIG, METRICS, MODEL, CHECKPOINTS = "config.yaml", "metrics.jsonl", "model", "checkpoints"
TRUNK, RUN_STATE, SAMPLES, CRASHES = "trunk", "state.json", "samples.jsonl", "crashes"
# What sinks keep in a run's folder: ids, and the files of those that write some.
SINKS, TENSORBOARD, WANDB = "sinks.json", "tensorboard", "wandb"
ADAPTER = ("adapters.safetensors", "adapter_config.json")
RUN_FILES = (
    *(CONFIG, METRICS, RUN_STATE, MODEL, CHECKPOINTS, TRUNK, SAMPLES, CRASHES),
    *(SINKS, TENSORBOARD, WANDB, *ADAPTER, *TOKENIZER_FILES),
)
ASIDE = ".replaced"


def check_output(config: RunOptions) -> None:
    """Raise OrpoError if the run folder cannot be written, or holds what was not to be replaced."""
    output = config.output
    check_folder(output)
    if not is_occupied(output) and config.resume:
        raise OrpoError(f"--resume: there is no run at {output}.")
    if not output.exists():
        return
    check_writable(output)
    names = sorted(p.name for p in output.iterdir() if not p.name.startswith("."))
    names = [name for name in names if name != CRASHES]  # of a run that wrote nothing else
    put_aside = holds_run(output / ASIDE)  # by a run that was killed before it wrote anything
    if (not names and not put_aside) or config.resume:
        return
    if not (holds_run(output) or put_aside):
        raise OrpoError(
            f"--output {output} holds other files ({', '.join(names[:3])}) and no run. "
            "Name another folder."
        )
    if not config.overwrite:
        raise OrpoError(
            f"{output} exists. Continue it with --resume, replace it with --overwrite, "
            "or name another folder with --output."
        )


def holds_run(output: Path) -> bool:
    """Whether a folder holds a run of ours, or an adapter of mlx-lm's."""
    return any((output / name).exists() for name in (CONFIG, *ADAPTER))


@contextmanager
def replacing_run(output: Path) -> Iterator[None]:
    """Put what an earlier run wrote aside, and remove it when the block ends.

    If the block fails before it has a checkpoint, the earlier run comes back.
    """
    aside = output / ASIDE
    try:
        aside.mkdir(parents=True)
        _move(output, aside)
    except OSError as error:
        raise write_error(output, error) from error
    try:
        yield
    except BaseException:
        with suppress(OSError):  # a disk that cannot be written any more; the next start does it
            settle(output, failed=True)
        raise
    settle(output, failed=False)


def settle(output: Path, *, failed: bool) -> bool:
    """Remove the run that was put aside, or bring it back if its successor has no checkpoint.

    Returns whether it is back.
    """
    aside = output / ASIDE
    back = failed and holds_run(aside) and not any((output / CHECKPOINTS).glob("step-*"))
    if back:
        for name in RUN_FILES:
            remove(output / name)
        _move(aside, output)
    remove(aside)
    return back


def _move(source: Path, target: Path) -> None:
    for name in RUN_FILES:
        if (source / name).exists():
            (source / name).rename(target / name)


def clear_strays(output: Path, report: Callback = lambda event: None) -> None:
    """Remove what a killed run left half-made; a run that it was to replace comes back.

    Both are reported.
    """
    patterns = [f".{name}.*" for name in (*RUN_FILES, "tokenizer")] + [f"{CHECKPOINTS}/.step-*"]
    strays = [stray for pattern in patterns for stray in output.glob(pattern)]
    left = [stray for stray in strays if not is_busy(stray)]
    for stray in left:
        remove(stray)
    if left:
        report(Notice(f"Removed from {output} what a killed run left: {len(left)} hidden folders."))
    if settle(output, failed=True):
        report(Notice(f"{output}: the run is back that a killed one was to replace."))
