"""Who imports whom: DESIGN's arrows, read from the source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "orpo_mlx"
BASE = {"errors", "extras", "files", "backend"}
# layer -> the layers that it may import, besides itself; BASE modules name theirs
ALLOWED = {
    "errors": set(),
    "extras": {"errors"},
    "files": {"errors"},
    "backend": set(),
    "written": set(),
    "options": {"errors", "written"},
    "config": {"errors", "options", "written"},
    "exchange": {"errors", "options", "written"},
    "objective": {"errors"},
    "data": BASE,
    "model": BASE,
    "training": {*BASE, "config", "options", "objective", "data", "model"},
    "review": {*BASE, "config", "options", "objective", "data", "model", "training"},
    "export": {*BASE, "config", "exchange", "options", "objective", "data", "model", "training"},
    "cli": {
        *BASE,
        "config",
        "exchange",
        "options",
        "objective",
        "data",
        "model",
        "training",
        "review",
        "export",
    },
}
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")
NO_MLX = [
    "errors", "extras", "files", "options", "config", "exchange", "data", "cli", "training/metrics",
    "training/run_folder",
    "review/doctor/check", "review/doctor/install", "review/doctor/process",
    "review/doctor/diagnose", "review/doctor/__main__",
]  # fmt: skip


def layer_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path, *, top_level: bool = False) -> Iterator[str]:
    """The dotted names that a file imports, `orpo_mlx.a.b` for `from orpo_mlx.a import b` too."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.iter_child_nodes(tree) if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_has_its_layer() -> None:
    assert {layer_of(file) for file in MODULES} == set(ALLOWED)


@pytest.mark.parametrize("file", MODULES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(file: Path) -> None:
    layer = layer_of(file)
    own = {name for name in imports(file) if name.startswith("orpo_mlx.")}
    own.discard("orpo_mlx.__version__")
    reached = {name.split(".")[1] for name in own}
    assert reached - {layer} <= ALLOWED[layer]


@pytest.mark.parametrize("place", NO_MLX)
def test_these_load_no_mlx(place: str) -> None:
    path = PACKAGE / place
    for file in path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]:
        assert not {name.split(".")[0] for name in imports(file)} & {"mlx", "mlx_lm"}, file


def test_backend_imports_the_standard_library_only_until_it_is_called() -> None:
    roots = {name.split(".")[0] for name in imports(PACKAGE / "backend.py", top_level=True)}
    assert not roots & {"mlx", "mlx_lm", "numpy", "orpo_mlx", "scipy_openblas32"}


@pytest.mark.parametrize("file", list(PACKAGE.rglob("__init__.py")), ids=lambda f: f.parent.name)
def test_init_files_hold_no_imports(file: Path) -> None:
    assert not list(imports(file, top_level=True))


def test_only_commands_and_scripts_print() -> None:
    for file in MODULES:
        if layer_of(file) == "cli":
            continue
        called = {node.func.id for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
                  if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}  # fmt: skip
        assert "print" not in called, file
