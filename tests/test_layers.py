"""Who imports whom: the arrows of docs/design.md, read from the source."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "orpo_mlx"
# Floors from the ground up. A room imports rooms of lower floors, and itself.
FLOORS = (
    ("disk_errors", "errors", "events", "install_advice", "leftovers"),
    ("backend", "extras", "files", "tokenizer_files", "yaml_files", "hub_errors"),
    ("objective", "data.reading", "model"),
    ("data.pairs",),
    ("data.tokens", "data.quality"),
    ("data.batching", "config", "public_names"),
    ("run_folder", "read_options"),
    ("loading", "supervisor"),
    ("training",),
    ("review", "search", "sinks"),
    ("judging",),
    ("interop", "doctor", "sampling"),
    ("demo", "loops"),
    ("cli",),
    ("__main__",),
)
# Within a floor's reach, and yet forbidden.
FORBIDDEN = {
    "data": {"config", "model", "objective"},
    "model": {"config", "data", "objective"},
    "objective": {"config", "data", "model", "files", "extras", "backend", "events"},
    "config": {"model", "objective", "backend", "events"},
    "read_options": {"model", "objective", "run_folder"},
}
CONFIG_MAY_IMPORT = {"orpo_mlx.data.pairs.format_names"}  # of data: the names of the row formats
# Rooms in which only some may import others.
WITHIN = {
    "interop.checkpoint": set(),
    "interop.gguf": {"interop.checkpoint"},
    "interop.peft": {"interop.checkpoint"},
    "interop.convert": {"interop.checkpoint", "interop.gguf"},
    "interop.fuse": {"interop.checkpoint", "interop.convert"},
    "interop.hub": {"interop.peft"},
}
NO_MLX = (
    "errors", "install_advice", "extras", "files", "tokenizer_files", "yaml_files", "hub_errors",
    "events", "leftovers", "disk_errors",
    "public_names", "run_folder", "supervisor", "read_options", "config", "data", "cli", "sinks",
    "training.metrics", "training.samples.log", "training.samples.prompts", "review.runs",
    "review.forgetting.paragraphs", "review.templates", "search.sweep",
    "judging.answers", "judging.outcome", "judging.plan", "judging.power", "judging.server",
    "judging.session", "judging.to_pairs", "judging.verdict", "judging.votes", "sampling.prompts",
    "loops", "sampling.chat_votes",
    "doctor.verdict", "doctor.install", "doctor.process", "doctor.__main__",
)  # fmt: skip
MOST_MODULES = 15
MOST_MODULES_OF = {"training": 16, "cli": sys.maxsize}


def modules(root: Path = ROOT, package: str = "orpo_mlx") -> dict[str, Path]:
    """Dotted name to file, `__init__` files under the name of their folder."""
    files = {}
    for file in sorted((root / package).rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return files


MODULES = modules()
NAMES = [name for name, file in MODULES.items() if file.name != "__init__.py"]


@cache
def statements(file: Path) -> list[tuple[bool, ast.AST]]:
    """The import statements of a file, and whether each is at its top level."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    top = set(ast.iter_child_nodes(tree))
    return [
        (node in top, node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]


def imports(file: Path, *, top_level: bool = False) -> Iterator[str]:
    """The dotted names that a file imports, `orpo_mlx.a.b` for `from orpo_mlx.a import b` too."""
    for at_top, node in statements(file):
        if top_level and not at_top:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(file: Path, known: dict[str, Path], *, top_level: bool = False) -> set[str]:
    """The modules of the package that a file imports."""
    names = {name for name in imports(file, top_level=top_level) if name.startswith("orpo_mlx")}
    named = {name if name in known else name.rpartition(".")[0] for name in names}
    assert named <= known.keys(), f"{file} imports {named - known.keys()}, which do not exist"
    return named - {"orpo_mlx"}


def room_of(module: str) -> str:
    """`data.pairs` for orpo_mlx.data.pairs.load; a module at the top is its own room."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2]) if parts[0] in ("data", "interop") and parts[2:] else parts[0]


def floor_of(room: str) -> int:
    for number, rooms in enumerate(FLOORS):
        if room in rooms or room.split(".")[0] in rooms:
            return number
    raise AssertionError(f"{room} is on no floor of FLOORS")


def wrong_arrow(importer: str, imported: str) -> bool:
    """Whether one module may not import another."""
    here, there = room_of(importer), room_of(imported)
    if here == there:
        return False
    top_here, top_there = here.split(".")[0], there.split(".")[0]
    if top_here == top_there == "interop":
        return there not in WITHIN[here]
    if top_here == "config" and top_there == "data":
        return imported not in CONFIG_MAY_IMPORT
    if top_there in FORBIDDEN.get(top_here, ()):
        return True
    return floor_of(there) >= floor_of(here)


@cache
def graph() -> dict[str, set[str]]:
    return {name: own_imports(file, MODULES) for name, file in MODULES.items()}


def reached(starts: set[str], arrows: dict[str, set[str]]) -> set[str]:
    """What modules import, and what those import, and so on."""
    seen, waiting = set(starts), list(starts)
    while waiting:
        new = arrows[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def imports_mlx(file: Path, *, top_level: bool = False) -> bool:
    roots = {name.split(".")[0] for name in imports(file, top_level=top_level)}
    return bool(roots & {"mlx", "mlx_lm"})


def under(room: str) -> set[str]:
    """The modules of a room, or the one module, by a name that must exist."""
    whole = f"orpo_mlx.{room}"
    names = {name for name in NAMES if name == whole or name.startswith(whole + ".")}
    assert names, f"{whole} does not exist"
    return names


@pytest.mark.parametrize("module", NAMES)
def test_imports_follow_the_arrows(module: str) -> None:
    assert not {other for other in graph()[module] if wrong_arrow(module, other)}


def test_no_module_reaches_itself() -> None:
    assert not {name for name in MODULES if name in reached(set(graph()[name]), graph())}


def test_every_room_is_on_a_floor_and_every_floor_is_real() -> None:
    rooms = {room_of(name) for name in NAMES}
    assert all(floor_of(room) >= 0 for room in rooms)
    listed = {room for floor in FLOORS for room in floor}
    assert not {room for room in listed if not under(room)}
    assert not {room for room in WITHIN if not under(room)}


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("orpo_mlx.data.reading.files", "orpo_mlx.data.pairs.load"),
        ("orpo_mlx.data.pairs.load", "orpo_mlx.data.tokens.encoder"),
        ("orpo_mlx.data.tokens.encoder", "orpo_mlx.data.batching.order"),
        ("orpo_mlx.data.tokens.store", "orpo_mlx.model.base"),
        ("orpo_mlx.model.base", "orpo_mlx.config.train"),
        ("orpo_mlx.config.groups", "orpo_mlx.data.pairs.load"),
        ("orpo_mlx.training.loop", "orpo_mlx.review.curves"),
        ("orpo_mlx.review.curves", "orpo_mlx.interop.hub.card"),
        ("orpo_mlx.interop.peft.importer", "orpo_mlx.interop.hub.push"),
        ("orpo_mlx.events", "orpo_mlx.training.metrics.log"),
        ("orpo_mlx.doctor.checks", "orpo_mlx.interop.fuse.merge"),
    ],
)
def test_an_arrow_back_is_seen(importer: str, imported: str) -> None:
    assert importer in MODULES
    assert imported in MODULES
    assert wrong_arrow(importer, imported)


# What these import inside a function is loaded when the work begins, and may be mlx.
LIGHT = under("cli") | {"orpo_mlx.backend", "orpo_mlx.doctor.process"}


def without_mlx(room: str) -> set[str]:
    """The modules that load mlx when those of a room are imported."""
    arrows = {
        name: own_imports(file, MODULES, top_level=name in LIGHT) for name, file in MODULES.items()
    }
    names = reached(under(room), arrows)
    return {name for name in names if imports_mlx(MODULES[name], top_level=name in LIGHT)}


@pytest.mark.parametrize("room", NO_MLX)
def test_these_load_no_mlx_nor_does_what_they_import(room: str) -> None:
    assert not without_mlx(room)


@pytest.mark.parametrize("room", ["model.lora", "training.loop", "interop.fuse.merge"])
def test_what_loads_mlx_is_seen(room: str) -> None:
    assert without_mlx(room)


def test_backend_imports_the_standard_library_only_until_it_is_called() -> None:
    roots = {name.split(".")[0] for name in imports(PACKAGE / "backend.py", top_level=True)}
    assert roots <= sys.stdlib_module_names


@pytest.mark.parametrize(
    "file", [f for f in MODULES.values() if f.name == "__init__.py"], ids=lambda f: f.parent.name
)
def test_init_files_hold_no_imports(file: Path) -> None:
    assert not list(imports(file, top_level=True))


def crowded(root: Path = ROOT) -> dict[str, int]:
    """Folders with more modules than a reader keeps in mind."""
    folders: dict[str, int] = {}
    for name, file in modules(root).items():
        if file.name != "__init__.py":
            folder = name.rpartition(".")[0].removeprefix("orpo_mlx").lstrip(".")
            folders[folder] = folders.get(folder, 0) + 1
    return {f: n for f, n in folders.items() if n > MOST_MODULES_OF.get(f, MOST_MODULES)}


def test_no_folder_is_crowded() -> None:
    assert not crowded()


def test_a_crowded_folder_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "orpo_mlx" / "data"
    folder.mkdir(parents=True)
    for number in range(MOST_MODULES + 1):
        (folder / f"part{number}.py").touch()
    assert crowded(tmp_path) == {"data": MOST_MODULES + 1}


def prints(file: Path) -> bool:
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    )


def test_only_commands_and_scripts_print(tmp_path: Path) -> None:
    assert not [name for name in NAMES if room_of(name) != "cli" and prints(MODULES[name])]
    planted = tmp_path / "planted.py"
    planted.write_text("def f():\n    print(1)\n", encoding="utf-8")
    assert prints(planted)
