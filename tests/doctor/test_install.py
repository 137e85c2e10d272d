"""The installation's checks, run as on machines that are not this one."""

import ast
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from orpo_mlx.doctor import install
from orpo_mlx.doctor.install import Requirement
from orpo_mlx.doctor.verdict import FAILED, OK
from orpo_mlx.install_advice import pip_install

PACKAGE = Path(install.__file__).parent
Versions = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this machine another one, on which mlx is not installed."""

    def pretend(system: str, processor: str, **facts: str) -> None:
        monkeypatch.setattr(platform, "system", lambda: system)
        monkeypatch.setattr(platform, "machine", lambda: processor)
        monkeypatch.setattr(platform, "mac_ver", lambda: (facts.get("macos", ""), (), ""))
        outputs = {"sysctl": facts.get("translated", ""), "sw_vers": facts.get("true_macos", "")}
        monkeypatch.setattr(install, "_output", lambda *command, **_: outputs[command[0]])
        monkeypatch.setattr(install, "_glibc_version", lambda: facts.get("glibc", ""))
        monkeypatch.setattr(install, "installed", lambda name: None)

    return pretend


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Versions:
    """Changes which versions are installed; None: not installed."""
    true = install.installed

    def pretend(**changes: str | None) -> None:
        named = {name.replace("_", "-"): version for name, version in changes.items()}
        monkeypatch.setattr(install, "installed", lambda n: named[n] if n in named else true(n))

    return pretend


def test_this_installation_is_right() -> None:
    checks = list(install.iter_install_checks())
    assert [(c.name, c.status) for c in checks] == [
        ("Python", OK),
        ("platform", OK),
        ("packages", OK),
    ]
    assert f"mlx {metadata.version('mlx')}, " in checks[2].detail


@pytest.mark.parametrize(
    ("kind", "version", "words"),
    [
        ("CPython", "3.10.4", "orpo-mlx needs >=3.11"),
        ("PyPy", "3.11.1", "MLX runs on CPython only"),
    ],
)
def test_a_wrong_python_is_named(
    monkeypatch: pytest.MonkeyPatch, kind: str, version: str, words: str
) -> None:
    monkeypatch.setattr(platform, "python_implementation", lambda: kind)
    monkeypatch.setattr(platform, "python_version", lambda: version)
    check = install.check_python()
    assert check.status == FAILED
    assert words in check.detail
    assert "new environment" in check.remedy


@pytest.mark.parametrize(
    ("system", "processor", "facts", "words", "remedy"),
    [
        ("Darwin", "x86_64", {"macos": "14.5"}, "an Intel Mac", "Apple silicon"),
        ("Darwin", "x86_64", {"macos": "14.5", "translated": "1"}, "Rosetta", "an arm64 Python"),
        ("Darwin", "arm64", {"macos": "13.6.1"}, "mlx needs macOS 14.0", "Update macOS"),
        ("Darwin", "arm64", {"macos": "10.16", "true_macos": "13.1"}, "macOS 13.1", "Update macOS"),
        ("Linux", "x86_64", {}, "musl", "glibc 2.35 or later"),
        ("Linux", "x86_64", {"glibc": "2.31"}, "mlx needs glibc 2.35", "Ubuntu 22.04"),
        ("Linux", "ppc64le", {"glibc": "2.39"}, "x86_64 and aarch64 only", "from source"),
        ("Windows", "AMD64", {}, "runs on macOS and Linux", "WSL 2"),
    ],
)
def test_a_platform_without_a_wheel_is_named(
    machine: Callable[..., None],
    system: str,
    processor: str,
    facts: dict[str, str],
    words: str,
    remedy: str,
) -> None:
    machine(system, processor, **facts)
    check = install.check_platform()
    assert check.status == FAILED
    assert words in check.detail
    assert remedy in check.remedy


@pytest.mark.parametrize(
    ("system", "processor", "facts"),
    [
        ("Darwin", "arm64", {"macos": "14.0"}),
        ("Darwin", "arm64", {"macos": "10.16", "true_macos": "26.1"}),
        ("Linux", "x86_64", {"glibc": "2.35"}),
        ("Linux", "aarch64", {"glibc": "2.39"}),
    ],
)
def test_a_platform_with_a_wheel_is_right(
    machine: Callable[..., None], system: str, processor: str, facts: dict[str, str]
) -> None:
    machine(system, processor, **facts)
    assert install.check_platform().status == OK


def test_an_mlx_that_was_built_there_makes_a_platform_right(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("Linux", "x86_64", glibc="2.31")
    monkeypatch.setattr(install, "installed", lambda name: "0.32.4")
    check = install.check_platform()
    assert check.status == OK
    assert check.detail.endswith("mlx needs glibc 2.35, but mlx 0.32.4 is installed")


def test_wrong_versions_are_all_named_with_the_command_that_fixes_them(versions: Versions) -> None:
    versions(mlx_lm="0.31.0", click=None)
    check = install.check_packages()
    assert check.status == FAILED
    assert "mlx-lm 0.31.0 is installed, orpo-mlx needs >=0.32.2,<0.33" in check.detail
    assert "click is missing" in check.detail
    assert check.remedy == "pip install --upgrade 'mlx-lm>=0.32.2,<0.33' 'click>=8.1'"


def test_a_wrong_mlx_is_fixed_together_with_its_backend(versions: Versions) -> None:
    versions(mlx="0.33.1", mlx_cpu="0.33.1")
    check = install.check_packages()
    assert check.detail == "mlx 0.33.1 is installed, orpo-mlx needs >=0.32.4,<0.33"
    assert check.remedy == "pip install --upgrade 'mlx[cpu]>=0.32.4,<0.33'"


def test_an_mlx_without_its_files_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlx", None)
    check = install.check_packages()
    assert check.status == FAILED
    assert (
        check.detail == f"mlx {metadata.version('mlx')} is installed, but Python does not find it"
    )
    assert check.remedy.startswith("pip install --force-reinstall 'mlx[")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mlx": "0.32.5", "mlx_cpu": "0.32.4"}, "mlx-cpu 0.32.4 does not fit mlx 0.32.5"),
        (
            {"mlx": "0.32.4", "mlx_cpu": "0.32.4", "mlx_cuda_13": "0.32.4"},
            "mlx-cpu and mlx-cuda-13 overwrite each other's files",
        ),
    ],
)
def test_a_backend_that_does_not_fit_is_named(
    versions: Versions, changes: dict[str, str], words: str
) -> None:
    versions(**changes)
    check = install.check_packages()
    assert check.detail == words
    assert "pip uninstall mlx-cpu" in check.remedy
    assert "pip install --force-reinstall 'mlx[c" in check.remedy


def test_requirements_come_from_the_checkout_and_elsewhere_from_what_was_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ours = Requirement("mlx", ">=0.32.4,<0.33", "orpo-mlx")
    assert ours in install.requirements()
    assert Requirement("transformers", ">=5.7.0", "mlx-lm") in install.requirements()
    assert not {"mlx[cpu]", "datasets", "torch"} & {r.name for r in install.requirements()}
    monkeypatch.setattr(install, "PYPROJECT", tmp_path / "pyproject.toml")
    lines = ["mlx<0.4,>=0.3", 'ruff>=0.9; extra == "test"']
    monkeypatch.setattr(metadata, "requires", lambda name: lines if name == "orpo-mlx" else [])
    assert install.requirements() == [Requirement("mlx", "<0.4,>=0.3", "orpo-mlx")]


@pytest.mark.parametrize(
    ("version", "versions", "fits"),
    [
        ("0.32.4", ">=0.32.4,<0.33", True),
        ("0.32.10", ">=0.32.4,<0.33", True),
        ("0.33", ">=0.32.4,<0.33", False),
        ("0.33.0.dev20260101", ">=0.32.4,<0.33", False),
        ("0.32.4+local", "==0.32.4", True),
        ("2", ">=2.0", True),
        ("1.5.1", "~=1.4", True),
        ("2.0", "~=1.4", False),
        ("1.0", "!=1.0", False),
        ("1.0", "", True),
    ],
)
def test_versions_are_compared_by_their_numbers(version: str, versions: str, fits: bool) -> None:
    assert install.fits(version, versions) == fits


@pytest.mark.parametrize(
    ("package", "error", "remedy"),
    [
        ("mlx", "libmlx.so: cannot open shared object file", pip_install("cpu")),
        ("mlx", "libc.so.6: version `GLIBC_2.35' not found", "Use a newer system"),
        ("numpy", "incompatible architecture (have 'x86_64', need 'arm64')", "arm64 Python"),
        ("numpy", "cannot import name multiarray", "pip install --force-reinstall numpy"),
    ],
)
def test_a_broken_import_has_its_remedy(
    monkeypatch: pytest.MonkeyPatch, package: str, error: str, remedy: str
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    assert remedy in install.import_remedy(package, error)


@pytest.mark.parametrize("name", ["__init__", "__main__", "verdict", "install"])
def test_this_part_needs_no_package_and_no_new_python(name: str) -> None:
    tree = ast.parse((PACKAGE / f"{name}.py").read_text(), feature_version=(3, 9))
    froms = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    plain = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    roots = {str(module).split(".")[0] for module in froms | plain}
    assert roots <= {*sys.stdlib_module_names, "orpo_mlx"}
    assert {m for m in froms if str(m).startswith("orpo_mlx")} <= {
        "orpo_mlx.doctor.verdict",
        "orpo_mlx.doctor.install",
        "orpo_mlx.install_advice",
    }


@pytest.mark.touchy
def test_it_runs_where_nothing_is_installed() -> None:
    root = Path(install.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-m", "orpo_mlx.doctor"],
        cwd=root,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    assert done.returncode == 1
    assert "mlx is missing" in done.stdout
    assert "pip install --upgrade 'mlx[cpu]>=" in done.stdout
    assert done.stderr == ""
