"""Every adapter of a folder into its base, where the base is on this machine."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from orpo_mlx.config.interop import FuseConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback
from orpo_mlx.files import is_occupied, user_path
from orpo_mlx.interop.fuse.merge import Fused, fuse
from orpo_mlx.model.adapters import WEIGHTS, named_base, read_adapter
from orpo_mlx.model.base import has_weights


class Outcome(NamedTuple):
    """What became of one adapter: one of the last two is there."""

    name: str
    base: str
    fused: Fused | None = None
    why: str = ""  # it failed, or was left out
    failed: bool = False


def fuse_local(
    adapters: Path, output: Path, *, dequantize: bool, overwrite: bool, report: Callback
) -> Iterator[Outcome]:
    """Fuse each run folder under `adapters` to a folder of its name under `output`.

    Continues after one that fails; one whose base is not here is left out. Raises OrpoError if
    there is none.
    """
    runs = sorted(file.parent for file in adapters.glob(f"*/{WEIGHTS}"))
    if not runs:
        raise OrpoError(f"{adapters} holds no adapter: no */{WEIGHTS} there.")
    for run in runs:
        base = ""
        try:
            adapter = read_adapter(run)
            base, revision = named_base(adapter, None, None)
            if not (folder := _local(base, revision)):
                yield Outcome(run.name, base, why="its base is not on this machine")
                continue
            if is_occupied(output / run.name) and not overwrite:
                why = f"{output / run.name} exists (--overwrite replaces it)"
                yield Outcome(run.name, base, why=why)
                continue
            config = FuseConfig(
                adapter=[str(run)],
                model=str(folder),
                output=output / run.name,
                dequantize=dequantize,
                overwrite=overwrite,
            )
            yield Outcome(run.name, base, fuse(config, report))
        except OrpoError as error:
            yield Outcome(run.name, base, why=str(error), failed=True)


def _local(base: str, revision: str | None) -> Path | None:
    """The folder of a base that is here with its weights, in the Hub's cache too."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    folder = user_path(base)
    if folder.is_dir():
        return folder
    try:
        folder = Path(snapshot_download(base, revision=revision, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None
    return folder if has_weights(folder) else None
