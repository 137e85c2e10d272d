"""The doctor as a person calls it: on this machine, and where packages are broken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orpo_mlx.cli.main import run
from orpo_mlx.doctor.verdict import FAILED, OK, SKIPPED, Check, Running
from orpo_mlx.install_advice import pip_install
from tests.cli.conftest import Cli, Result
from tests.loaded import assert_loads_none

CHILD_PYTHON = Path(__file__).parents[1] / "child_python" / "sitecustomize.py"
# What a sitecustomize.py on the PYTHONPATH does to every process: one package is broken.
BROKEN = """
import sys

class Broken:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "PACKAGE":
            raise ImportError("ERROR")

sys.meta_path.insert(0, Broken())
"""
# A rate that is not measured: on a busy machine MLX's may be any share of numpy's.
FAST_MATMUL = """
from orpo_mlx import backend
backend.matmul_gflops = lambda *arguments: 1e6
"""


def doctor(folder: Path, *arguments: str, **environment: str) -> Result:
    """`orpo-mlx doctor` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "orpo_mlx", "doctor", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    return Result(done.returncode, done.stdout, done.stderr)


def begin_with(folder: Path, text: str) -> dict[str, str]:
    """The environment in which every Python runs a text first."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(CHILD_PYTHON.read_text() + text)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def break_package(folder: Path, package: str, error: str) -> dict[str, str]:
    """The environment in which importing a package raises."""
    return begin_with(folder / "broken", BROKEN.replace("PACKAGE", package).replace("ERROR", error))


@pytest.mark.touchy
def test_every_check_passes_here_or_says_why_it_does_not_apply(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    result = doctor(empty, "--json", **begin_with(tmp_path / "first", FAST_MATMUL))
    report = json.loads(result.out)
    checks = {c["name"]: c for c in report["checks"]}
    assert not [c for c in report["checks"] if c["status"] == FAILED]
    assert (result.status, report["ok"]) == (0, True)
    assert [name for name in checks if checks[name]["status"] == OK][:4] == [
        "Python",
        "platform",
        "packages",
        "imports",
    ]
    kinds = ("float32", "bfloat16", "float16", "4-bit", "4-bit in bfloat16")
    assert {f"fast path, {kind}" for kind in kinds} <= set(checks)
    assert {f"GPU against CPU, {kind}" for kind in kinds} <= set(checks)
    assert all(c["detail"] for c in report["checks"])
    assert (checks["training"]["status"], checks["adapter"]["status"]) == (OK, OK)
    assert "training ..." in result.err.splitlines()
    assert checks["matmul"]["detail"].startswith("float32, 1,000,000 GFLOP/s")
    assert not list(empty.iterdir())


@pytest.mark.touchy
def test_an_mlx_that_cannot_be_imported_is_a_verdict(tmp_path: Path) -> None:
    error = "libmlx.so: cannot open shared object file"
    result = doctor(tmp_path, "--quiet", **break_package(tmp_path, "mlx", error))
    assert result.status == 1
    assert result.err == ""
    lines = result.out.splitlines()
    assert "is installed, but Python does not find it" in lines[2]
    assert lines[4].startswith("FAILED          imports: mlx.core cannot be imported")
    assert error in lines[4]
    if sys.platform == "linux":
        assert f"What to do: MLX has no backend. Install it: {pip_install('cpu')}" in lines[5]
    assert lines[-1].endswith(": 2 OK, 0 not applicable, 2 failed (packages; imports).")


@pytest.mark.touchy
def test_a_numpy_that_cannot_be_imported_is_a_verdict(tmp_path: Path) -> None:
    broken = break_package(tmp_path, "numpy", "multiarray failed to import")
    result = doctor(tmp_path, "--json", **broken)
    check = json.loads(result.out)["checks"][-1]
    assert result.status == 1
    assert (check["name"], check["status"]) == ("imports", FAILED)
    assert "numpy cannot be imported (ImportError: multiarray failed" in check["detail"]
    assert check["remedy"] == "pip install --force-reinstall numpy"


@pytest.fixture
def one_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three verdicts in place of the doctor's."""
    events = [
        Running("a"),
        Check("a", OK, "right"),
        Check("b", FAILED, "wrong", "fix it"),
        Check("c", SKIPPED, "no GPU here"),
    ]
    monkeypatch.setattr("orpo_mlx.cli.doctor.diagnose", lambda: iter(events))


def test_verdicts_go_to_standard_output_and_progress_to_standard_error(
    cli: Cli, one_failure: None
) -> None:
    result = cli("doctor")
    assert result == Result(
        1,
        "OK              a: right\n"
        "FAILED          b: wrong\n"
        "                What to do: fix it\n"
        "does not apply  c: no GPU here\n"
        "\n"
        "3 checks in 0 s: 1 OK, 1 not applicable, 1 failed (b).\n",
        "a ...\n",
    )
    assert cli("doctor", "--quiet") == Result(1, result.out, "")


def test_json_is_one_object_and_the_status_is_the_same(cli: Cli, one_failure: None) -> None:
    result = cli("doctor", "--json", "--quiet")
    report = json.loads(result.out)
    assert (result.status, result.err, report["ok"]) == (1, "", False)
    assert report["checks"][1] == {
        "name": "b",
        "status": "failed",
        "detail": "wrong",
        "remedy": "fix it",
    }


@pytest.mark.touchy
def test_the_command_needs_click_alone() -> None:
    heavy = {"pydantic", "numpy", "mlx", "mlx_lm", "yaml", "rich", "transformers"}
    assert_loads_none("from orpo_mlx.cli import doctor", heavy)


def test_wrong_usage_is_one_message() -> None:
    assert run(["doctor", "--model", "x"]) == 1
