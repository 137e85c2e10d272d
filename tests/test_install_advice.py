"""Advice to install an extra fits how this copy was installed."""

import json
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from orpo_mlx import install_advice
from orpo_mlx.install_advice import CHECKOUT, pip_install


class Distribution:
    """What importlib.metadata gives, as far as it is asked."""

    def __init__(self, origin: object):
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return json.dumps(self.origin) if self.origin else None


def requirement(monkeypatch: pytest.MonkeyPatch, origin: object) -> str:
    monkeypatch.setattr(metadata, "distribution", lambda name: Distribution(origin))
    return pip_install("check").partition("pip install ")[2]


def test_from_an_index_it_is_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert requirement(monkeypatch, None) == "'orpo-mlx[check]'"


def test_from_a_checkout_it_is_its_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "a checkout"
    folder.mkdir()
    origin = {"url": folder.as_uri(), "dir_info": {}}
    assert requirement(monkeypatch, origin) == f"'{folder}[check]'"
    origin = {"url": folder.as_uri(), "dir_info": {"editable": True}}
    assert requirement(monkeypatch, origin) == f"-e '{folder}[check]'"


def test_a_checkout_that_is_gone_is_not_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    origin = {"url": (tmp_path / "gone").as_uri(), "dir_info": {"editable": True}}
    assert requirement(monkeypatch, origin) == "'orpo-mlx[check]'"


def test_from_a_wheel_it_is_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = tmp_path / "orpo_mlx-0.2.0-py3-none-any.whl"
    wheel.touch()
    origin = {"url": wheel.as_uri(), "archive_info": {}}
    assert requirement(monkeypatch, origin) == f"'{wheel}[check]'"


def test_from_an_address_it_is_that_of_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    origin = {"url": "https://example.org/orpo_mlx.whl", "archive_info": {}}
    wanted = "'orpo-mlx[check] @ https://example.org/orpo_mlx.whl'"
    assert requirement(monkeypatch, origin) == wanted


def test_a_path_with_a_quote_is_one_word_of_the_shell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "ann's"
    folder.mkdir()
    origin = {"url": folder.as_uri(), "dir_info": {"editable": True}}
    written = requirement(monkeypatch, origin)
    assert shlex.split(written) == ["-e", f"{folder}[check]"]


def test_where_there_is_no_pip_uv_installs(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = {"uv": "/usr/bin/uv"}
    monkeypatch.setattr(shutil, "which", programs.get)
    monkeypatch.setattr(install_advice, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "executable", "/home/ann/v/bin/python")
    expected = "uv pip install --python /home/ann/v/bin/python "
    assert pip_install("check").startswith(expected)


def test_from_a_repository_it_is_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    vcs = {"vcs": "git", "commit_id": "abc"}
    origin = {"url": "https://example.org/orpo-mlx", "vcs_info": vcs}
    wanted = "'orpo-mlx[check] @ git+https://example.org/orpo-mlx@abc'"
    assert requirement(monkeypatch, origin) == wanted


def test_what_is_run_in_place_is_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    assert pip_install("hub").endswith(f"pip install -e '{CHECKOUT}[hub]'")


def test_pip_of_another_environment_is_not_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: str(tmp_path / name))
    assert pip_install("hub").startswith(f"{sys.executable} -m pip install ")
    monkeypatch.setattr(shutil, "which", lambda name: str(Path(sys.executable).parent / name))
    assert pip_install("hub").startswith("pip install ")


def test_it_needs_no_package() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        "from orpo_mlx.install_advice import pip_install; print(pip_install('cpu'))"
    )
    root = Path(install_advice.__file__).parents[1]
    command = [sys.executable, "-S", "-E", "-c", code, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(f"pip install -e '{root}[cpu]'")
