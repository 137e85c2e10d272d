"""What is private or unstable in another package is touched in one file: read from the source."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SEAM = "orpo_mlx/model/mlx_lm_api.py"
SEAM_MODULE = "orpo_mlx.model.mlx_lm_api"
CHECKED = ("orpo_mlx", "benchmarks", "scripts")
OURS = {"orpo_mlx", "benchmarks", "tests"}
NAMED_TUPLE = {"_replace", "_asdict", "_fields", "_make"}
BY_NAME = {"getattr", "hasattr", "setattr", "delattr"}
# File and source text of each exception, and why it is one. Each must still occur.
TEMPLATE = "orpo_mlx/data/tokens/rendering/template.py"
BOUNDS = "orpo_mlx/data/tokens/rendering/bounds.py"
CLIENT = "orpo_mlx/interop/hub/client.py"
PEER = "benchmarks/peer.py"
ALLOWED = {
    (PEER, "mlx_lm.tuner.utils.linear_to_lora_layers"): "runs where no orpo_mlx is installed",
    (PEER, "mlx_lm.utils.load_model"): "the same",
    (PEER, "mx.device_info ="): "the peer asks mlx for a size that not every machine names",
    (PEER, "nn.losses.cross_entropy ="): "the peer's sums are compared in blocks too",
    (PEER, "code.gated_delta_update ="): "the recurrence's share, by leaving it out",
    (PEER, "shared._mlx_lm_lora_memory_safe"): "whether the peer's own recurrences are in place",
    (TEMPLATE, "self._other._render_texts"): "ours: the same template, its thinking switch turned",
    (TEMPLATE, "chat_template_utils._compile_jinja_template"): "transformers' cache of templates",
    (TEMPLATE, "compiled.globals ="): "one flat dict renders faster than jinja's chain",
    (BOUNDS, "chat_template_utils._cached_compile_jinja_template"): "its compiler, with bounds",
    (BOUNDS, "chat_template_utils._cached_compile_jinja_template ="): "the same",
    (BOUNDS, "super()._output_child_pre"): "jinja's code generator, with bounds",
    ("orpo_mlx/data/tokens/workers.py", "os._exit"): "what waits for a dead parent is dropped",
    (TEMPLATE, "vars(environment)"): "whether the sandbox has our memo already",
    (CLIENT, "logger.handlers ="): "the library's notices become events meanwhile",
    (CLIENT, "logger.propagate ="): "the same",
}


def files(*folders: str) -> list[Path]:
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in NAMED_TUPLE


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """The dotted name of everything that is imported, and the name that it is bound to."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, alias.asname or alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{node.module}.{alias.name}", alias.asname or alias.name


def root_of(node: ast.AST) -> str:
    """`a` of `a.b[0].c().d`."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def made(value: ast.AST) -> bool:
    """Whether a value is a new object, `Class(...)`: that is the caller's to set up."""
    if not isinstance(value, ast.Call):
        return False
    return ast.unparse(value.func).rpartition(".")[2][:1].isupper()


def foreign_names(tree: ast.AST) -> set[str]:
    """What is imported from another package, and what is assigned straight from such a name."""
    names = {
        bound
        for name, bound in imported(tree)
        if name.split(".")[0] not in OURS or name.startswith(SEAM_MODULE)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) or node.value is None:
            continue
        if root_of(node.value) in names and not made(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def foreign_imports(tree: ast.AST) -> Iterator[str]:
    """mlx_lm in any form, and private names of other packages."""
    for name, _ in imported(tree):
        root, *rest = name.split(".")
        if root == "mlx_lm" or (root not in OURS and any(map(private, rest))):
            yield name


def private_attributes(tree: ast.AST) -> Iterator[str]:
    """`x._y` and `getattr(x, "_y")`, but for self's, cls's and a NamedTuple's."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not own:
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in BY_NAME:
            name = node.args[1]
            if isinstance(name, ast.Constant) and private(str(name.value)):
                yield ast.unparse(node)


def foreign_state(tree: ast.AST) -> Iterator[str]:
    """Attributes set on foreign modules and objects, or by name; `__dict__` of any but self."""
    foreign = foreign_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            stored = isinstance(node.ctx, ast.Store | ast.Del)
            special = node.attr.startswith("__")
            if stored and (special or root_of(node.value) in foreign):
                yield f"{ast.unparse(node)} ="
            elif node.attr == "__dict__" and root_of(node.value) != "self":
                yield ast.unparse(node)
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "id", "")
            if name in ("setattr", "delattr") or (name == "vars" and node.args):
                yield ast.unparse(node)


CHECKS = (foreign_imports, private_attributes, foreign_state)


def findings() -> set[tuple[str, str]]:
    """File and source text of whatever a check reports outside the seam."""
    return {
        (file.relative_to(ROOT).as_posix(), text)
        for file in files(*CHECKED)
        if file != ROOT / SEAM
        for check in CHECKS
        for text in check(ast.parse(file.read_text(encoding="utf-8")))
    }


def test_only_the_seam_and_the_named_lines_touch_what_is_not_ours() -> None:
    assert not findings() - ALLOWED.keys()


def test_every_exception_still_occurs() -> None:
    assert not ALLOWED.keys() - findings()


def test_tests_import_no_private_name_of_another_package() -> None:
    for file in files("tests"):
        names = foreign_imports(ast.parse(file.read_text(encoding="utf-8")))
        assert not [name for name in names if any(map(private, name.split(".")))], file


@pytest.mark.parametrize("check", CHECKS)
def test_the_seam_is_where_each_kind_is(check: object) -> None:
    assert callable(check)
    assert list(check(ast.parse((ROOT / SEAM).read_text(encoding="utf-8"))))


@pytest.mark.parametrize(
    ("source", "reported"),
    [
        ("import mlx_lm", ["mlx_lm"]),
        ("def f():\n    from mlx_lm.utils import load", ["mlx_lm.utils.load"]),
        ("from jinja2.sandbox import _x", ["jinja2.sandbox._x"]),
        ("import huggingface_hub._api as h", ["huggingface_hub._api"]),
        ("from huggingface_hub._api import x", ["huggingface_hub._api.x"]),
        ("from mlx.core import array\nfrom a import __version__", []),
        ("from orpo_mlx.cli.flags import _repeat_flags", []),
    ],
)
def test_a_planted_import_is_reported(source: str, reported: list[str]) -> None:
    assert list(foreign_imports(ast.parse(source))) == reported


@pytest.mark.parametrize(
    ("source", "reported"),
    [
        ("model._no_grad", ["model._no_grad"]),
        ("self.inner._cache.x", ["self.inner._cache"]),
        ("getattr(model, '_x', None)", ["getattr(model, '_x', None)"]),
        ("self._x, cls._y, pair._replace(a=1), type(x).__name__", []),
    ],
)
def test_a_planted_private_attribute_is_reported(source: str, reported: list[str]) -> None:
    assert list(private_attributes(ast.parse(source))) == reported


@pytest.mark.parametrize(
    ("source", "reported"),
    [
        ("import mlx.core as mx\nmx.fast.attention = f", ["mx.fast.attention ="]),
        ("import mlx.core as mx\nmx.eval, x = f", ["mx.eval ="]),
        ("from mlx.nn import Linear\ndel Linear.mine", ["Linear.mine ="]),
        ("import logging as l\nx = l.getLogger('a')\nx.handlers = []", ["x.handlers ="]),
        ("kind.__call__ = f", ["kind.__call__ ="]),
        ("del kind.__call__", ["kind.__call__ ="]),
        ("setattr(x, name, 1)", ["setattr(x, name, 1)"]),
        ("cache.__dict__.update(a=1)", ["cache.__dict__"]),
        ("vars(cache)['a'] = 1", ["vars(cache)"]),
        (f"from {SEAM_MODULE} import Cache\nCache.update = f", ["Cache.update ="]),
        ("from orpo_mlx.model import mlx_lm_api as a\na.Cache.fetch = f", ["a.Cache.fetch ="]),
        ("import mlx.core as mx\nx: object = mx.fast\nx.attention = f", ["x.attention ="]),
        ("import mlx.core as mx\n(x := mx.fast)\nx.attention = f", ["x.attention ="]),
        ("from tokenizers import Tokenizer\nx = Tokenizer()\nx.decoder = y", []),
        ("from orpo_mlx.a import B\nb = B()\nb.c = 1\nself.d = 2\nself.__dict__", []),
    ],
)
def test_planted_foreign_state_is_reported(source: str, reported: list[str]) -> None:
    assert list(foreign_state(ast.parse(source))) == reported


def test_the_standard_library_is_another_package_too() -> None:
    assert not OURS & sys.stdlib_module_names
    assert list(foreign_imports(ast.parse("from os import _exit"))) == ["os._exit"]
