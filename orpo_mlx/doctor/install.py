"""Python, platform and packages: what must be right before mlx can be imported.

Standard library only, and any Python from 3.9, so that it also runs where nothing is installed.
"""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import NamedTuple, Optional

from orpo_mlx.doctor.verdict import FAILED, OK, Check
from orpo_mlx.install_advice import pip_install

# What the wheels of mlx 0.32.4 on PyPI are built for.
MACHINES = {"Darwin": ("arm64",), "Linux": ("x86_64", "aarch64")}
MACOS, GLIBC = (14, 0), (2, 35)
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
BACKENDS = ("mlx-metal", "mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")
MODULES = {"mlx": "mlx", "mlx-lm": "mlx_lm"}
SHOWN = ("orpo-mlx", "mlx", *BACKENDS, "mlx-lm", "transformers", "numpy")
NEW_ENVIRONMENT = "make a new environment with it: python3 -m venv .venv"
ON_LINUX = "Linux, or another Mac: MLX needs Apple silicon (M1 or newer)"


class Requirement(NamedTuple):
    """A distribution, the versions of it that are wanted (`>=1,<2`), and who wants them."""

    name: str
    versions: str
    owner: str


def iter_install_checks() -> Iterator[Check]:
    """The checks of the installation, each made when it is asked for."""
    yield check_python()
    yield check_platform()
    yield check_packages()


def check_python() -> Check:
    """The interpreter: CPython, and as new as the package asks for."""
    kind, version = platform.python_implementation(), platform.python_version()
    detail = f"{kind} {version} ({sys.executable})"
    if kind != "CPython":
        remedy = f"Install CPython 3.11 or newer and {NEW_ENVIRONMENT}"
        return Check("Python", FAILED, f"{detail}; MLX runs on CPython only", remedy)
    wanted = _required_python()
    if not fits(version, wanted):
        remedy = f"Install a Python {wanted} and {NEW_ENVIRONMENT}"
        return Check("Python", FAILED, f"{detail}; orpo-mlx needs {wanted}", remedy)
    return Check("Python", OK, detail)


def check_platform() -> Check:
    """System, processor and C library: whether mlx has a wheel for them."""
    system, machine = platform.system(), platform.machine()
    if system == "Darwin":
        macos = _macos_version()
        detail, trouble = f"macOS {macos} on {machine}", _mac_trouble(macos, machine)
    elif system == "Linux":
        libc = _glibc_version()
        detail = f"Linux on {machine}, " + (f"glibc {libc}" if libc else "no glibc (musl?)")
        trouble = _linux_trouble(libc, machine)
    else:
        detail = f"{system} on {machine}"
        trouble = (
            "orpo-mlx runs on macOS and Linux",
            "Use Linux (on Windows: WSL 2), or a Mac with Apple silicon",
        )
    if not trouble:
        return Check("platform", OK, detail)
    why, remedy = trouble
    if version := installed("mlx"):
        return Check("platform", OK, f"{detail}; {why}, but mlx {version} is installed")
    return Check("platform", FAILED, f"{detail}: {why}", remedy)


def check_packages() -> Check:
    """What pyproject.toml asks for is installed, in versions that it allows."""
    problems, wanted = [], {}
    for name, versions, owner in requirements():
        version = installed(name)
        if version is None:
            problems.append(f"{name} is missing")
        elif not fits(version, versions):
            problems.append(f"{name} {version} is installed, {owner} needs {versions}")
        elif name in MODULES and not _is_importable(MODULES[name]):
            problems.append(f"{name} {version} is installed, but Python does not find it")
        else:
            continue
        wanted[name] = f"'{_with_backend(name)}{versions}'"
    how = "--force-reinstall" if any("not find" in problem for problem in problems) else "--upgrade"
    remedies = [f"pip install {how} {' '.join(wanted.values())}"] if wanted else []
    if clashes := _backend_problems():
        problems += clashes
        names = " ".join(_backends())
        remedies = [f"pip uninstall {names}", *remedies]
        if "mlx" not in wanted:
            remedies.append(f"pip install --force-reinstall '{_with_backend('mlx')}'")
    if problems:
        return Check("packages", FAILED, "; ".join(problems), " && ".join(remedies))
    shown = [f"{name} {version}" for name in SHOWN if (version := installed(name))]
    return Check("packages", OK, ", ".join(shown))


def requirements() -> "list[Requirement]":
    """What orpo-mlx and mlx-lm need whatever the platform and the extras."""
    result = []
    for owner, lines in (("orpo-mlx", _own_requirements()), ("mlx-lm", _stored("mlx-lm"))):
        for line in lines:
            match = re.match(r"([\w.-]+)(\[.*?\])?\s*\(?([^;()]*)\)?\s*(;.*)?$", line)
            if match and not match[4]:
                result.append(Requirement(match[1], match[3].replace(" ", ""), owner))
    return result


def installed(name: str) -> Optional[str]:  # noqa: UP045
    """The version of a distribution; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def fits(version: str, versions: str) -> bool:
    """Whether a version lies in a range like `>=0.32.4,<0.33`, by its release number."""
    have = _release(version)
    for bound in filter(None, versions.split(",")):
        match = re.match(r"\s*(>=|<=|==|!=|~=|>|<)\s*(\S+)", bound)
        if not match:
            continue
        sign, want = match[1], _release(match[2])
        width = max(len(have), len(want))
        here, there = (v + (0,) * (width - len(v)) for v in (have, want))
        holds = {
            ">=": here >= there,
            "<=": here <= there,
            "==": here == there,
            "!=": here != there,
            ">": here > there,
            "<": here < there,
            "~=": here >= there and have[: len(want) - 1] == want[:-1],
        }
        if not holds[sign]:
            return False
    return True


def import_remedy(name: str, error: str) -> str:
    """What to do when a package that is installed cannot be imported."""
    if "libmlx" in error and platform.system() == "Linux":
        return f"MLX has no backend. Install it: {pip_install('cpu')}, or with an NVIDIA GPU [cuda]"
    if re.search(r"GLIBC(XX)?_[\d.]+' not found", error):
        return "The C library is too old. Use a newer system (Ubuntu 22.04, Debian 12 or later)"
    if "incompatible architecture" in error or "wrong architecture" in error:
        return f"It was installed by another Python. With an arm64 Python, {NEW_ENVIRONMENT}"
    if name == "orpo-mlx":
        return pip_install("all")
    return f"pip install --force-reinstall {name}"


def _is_importable(module: str) -> bool:
    try:
        return util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _required_python() -> str:
    try:
        return metadata.metadata("orpo-mlx")["Requires-Python"] or ">=3.11"
    except metadata.PackageNotFoundError:
        return ">=3.11"


def _own_requirements() -> "list[str]":
    """From the checkout's pyproject.toml; elsewhere as they were installed."""
    try:
        import tomllib

        project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
        if project["name"] == "orpo-mlx":
            return list(project["dependencies"])
    except (ImportError, OSError, ValueError, KeyError):
        pass
    return _stored("orpo-mlx")


def _stored(name: str) -> "list[str]":
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def _release(version: str) -> "tuple[int, ...]":
    match = re.match(r"[\d.]*\d", version)
    return tuple(int(part) for part in match[0].split(".")) if match else (0,)


def _backends() -> "list[str]":
    return [name for name in BACKENDS if installed(name)]


def _backend_problems() -> "list[str]":
    """MLX's backend is a package of its own: exactly one, and of the same version."""
    mlx, backends = installed("mlx"), _backends()
    if not mlx:
        return []
    problems = [
        f"{name} {installed(name)} does not fit mlx {mlx}"
        for name in backends
        if installed(name) != mlx
    ]
    if len(backends) > 1:
        problems.append(f"{' and '.join(backends)} overwrite each other's files")
    return problems


def _with_backend(name: str) -> str:
    """`mlx` with the extra that brings its backend; other names as they are."""
    if name != "mlx" or platform.system() == "Darwin":
        return name
    return "mlx[cuda13]" if any("cuda" in backend for backend in _backends()) else "mlx[cpu]"


def _macos_version() -> str:
    version = platform.mac_ver()[0]
    if version != "10.16":
        return version
    # Every macOS since 11 reports this to a Python built for old systems.
    true = _output("sw_vers", "-productVersion", SYSTEM_VERSION_COMPAT="0")
    return true or version


def _mac_trouble(version: str, machine: str) -> "Optional[tuple[str, str]]":  # noqa: UP045
    if machine not in MACHINES["Darwin"]:
        if _output("sysctl", "-in", "sysctl.proc_translated") == "1":
            return (
                "this Python is built for Intel and runs under Rosetta, where MLX does not run",
                "Install an arm64 Python (from python.org, or Homebrew under /opt/homebrew), turn "
                f"off 'Open using Rosetta' for the terminal, and {NEW_ENVIRONMENT}",
            )
        return "an Intel Mac, on which MLX does not run", f"Use {ON_LINUX}"
    if _release(version) < MACOS:
        wanted = ".".join(map(str, MACOS))
        return f"mlx needs macOS {wanted}", f"Update macOS to {wanted} or later"
    return None


def _linux_trouble(libc: str, machine: str) -> "Optional[tuple[str, str]]":  # noqa: UP045
    if machine not in MACHINES["Linux"]:
        known = " and ".join(MACHINES["Linux"])
        return f"mlx has wheels for {known} only", f"Build mlx from source, or use {known}"
    wanted = ".".join(map(str, GLIBC))
    newer = f"Use a system with glibc {wanted} or later (Ubuntu 22.04, Debian 12, Fedora 36)"
    if not libc:
        return f"mlx needs glibc {wanted}; Alpine and others with musl have no wheel", newer
    if _release(libc) < GLIBC:
        return f"mlx needs glibc {wanted}", newer
    return None


def _glibc_version() -> str:
    """Like "2.36"; "" where the C library is another."""
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").rpartition(" ")[2]
    except (ValueError, OSError):
        return ""


def _output(*command: str, **environment: str) -> str:
    """What a command prints; "" if it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, **environment}
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
