"""Bounds on what a chat template, which may be anybody's, takes to write one text.

Loop turns, calls and characters are counted in jinja's sandbox, where the template makes them.
"""

import re
from collections.abc import Callable, Mapping
from functools import cache, wraps
from types import BuiltinMethodType, GeneratorType, MethodType
from typing import Any

from jinja2 import Template, nodes
from jinja2.compiler import CodeGenerator
from jinja2.runtime import LoopContext, Macro
from jinja2.utils import Namespace

from orpo_mlx.data.tokens.rendering.budget import (
    GROWN,
    LARGE,
    PIECE,
    SIZED,
    TooLongError,
    check_format,
    concat,
    count_turns,
    counted_items,
    counted_turns,
    estimate_size,
    has_wide,
    join_texts,
    keep,
    kept_text,
    replaced_size,
    spend,
)

LONGEST_SUM = 25  # of values that are added before the result is looked at
_IS_SHORT = "(made if type(made := ", ") is str and len(made) < LARGE else kept(made))"
_COMPUTED = re.compile(r":[^{}]*{")  # a width of str.format that is a field itself
_METHODS = (BuiltinMethodType, MethodType)
_OF_DICTS = frozenset(dir(dict))
# They make nothing that is larger than what they are given.
_GROWING = {"join", "replace", "expandtabs", "translate", "center", "ljust", "rjust", "zfill"}
_HARMLESS = {
    "abs", "count", "d", "default", "first", "float", "int", "last", "length", "trim", "round",
}  # fmt: skip


@cache
def bound_transformers() -> None:
    """Put the bounds on all templates that transformers compiles from now on."""
    from transformers.utils import chat_template_utils

    compile_template = chat_template_utils._cached_compile_jinja_template
    # An empty one: jinja computes what is constant in a template while it compiles it.
    chat_template_utils._cached_compile_jinja_template = lambda text: bound(
        compile_template(""), text
    )


def bound(template: Template, text: str) -> Template:
    """The template of a text, with bounds, in the environment of another template."""
    environment: Any = template.environment
    environment.code_generator_class = _Generator
    environment.intercepted_binops = frozenset({"*", "**", "%"})
    environment.call_binop = _operate
    environment.concat = concat
    environment.globals.pop("lipsum", None)
    environment.filters = {name: _filter(name, f) for name, f in environment.filters.items()}
    environment.call = _calling(environment.call)
    environment.getattr = _reading(environment.getattr)
    environment.wrap_str_format = _formatting(environment.wrap_str_format)
    bounded = environment.from_string(text)
    names: Any = bounded.root_render_func
    names.__globals__.update(
        counted_turns=counted_turns, kept=keep, kept_text=kept_text, str_join=join_texts,
        markup_join=join_texts,
        LARGE=LARGE,
    )  # fmt: skip
    return bounded


class _Generator(CodeGenerator):
    """Compiles loops, sums and lists so that they are counted; short texts cost next to nothing."""

    _loop_over: nodes.Node | None = None
    _sum_depth = 0

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        before, after = self._around(node)
        self.write(before)
        depth = self._sum_depth
        self._sum_depth = depth + 1 if isinstance(node, nodes.Add) else 0
        result = super().visit(node, *args, **kwargs)
        self._sum_depth = depth
        self.write(after)
        return result

    def visit_For(self, node: nodes.For, frame: Any) -> None:
        self._loop_over = node.iter
        super().visit_For(node, frame)

    def write(self, x: str) -> None:
        if x:
            super().write(x)

    def _around(self, node: nodes.Node) -> tuple[str, str]:
        """What is written before and after the code of a node."""
        if node is self._loop_over:
            self._loop_over = None
            return "counted_turns(", ")"
        if isinstance(node, nodes.Add):
            if self._sum_depth % LONGEST_SUM == 0:
                return _IS_SHORT
        elif isinstance(node, nodes.Dict) or (
            isinstance(node, nodes.List | nodes.Tuple)
            and getattr(node, "ctx", "load") == "load"
            and not all(isinstance(item, nodes.Const) for item in node.items)
        ):
            return "kept(", ")"
        return "", ""

    def _output_child_pre(self, node: Any, frame: Any, finalize: Any) -> None:
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super()._output_child_pre(node, frame, finalize)
        else:
            self.write("(")
        self.write("made if type(made := ")

    def _output_child_post(self, node: Any, frame: Any, finalize: Any) -> None:
        waits = f" and len(made) < {PIECE}" if frame.buffer else ""
        self.write(f") is str{waits} else kept_text(made))")


def _operate(context: Any, operator: str, left: Any, right: Any) -> Any:
    if operator == "%":
        if isinstance(left, str):
            check_format(left, "%", "*" in left, right)
        return keep(left % right)
    if operator == "**":
        if isinstance(left, int) and isinstance(right, int):
            spend(left.bit_length() * abs(right))
        return left**right
    if isinstance(left, int) and isinstance(right, int):
        spend(left.bit_length() + right.bit_length())
    for value, times in ((left, right), (right, left)):
        if isinstance(value, SIZED) and isinstance(times, int):
            spend(estimate_size(value) * max(times, 0))
    return left * right


def _formatting(wrap: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`str.format` as the sandbox wraps it, with bounds; None for any other value."""

    def wrap_str_format(value: Any) -> Any:
        if type(value) not in _METHODS or value.__name__ not in ("format", "format_map"):
            return None
        if (wrapper := wrap(value)) is None:
            return None

        def formatted(*args: Any, **kwargs: Any) -> Any:
            mappings = [*filter(lambda a: isinstance(a, Mapping), args), kwargs]
            text, values = value.__self__, [*args, *(v for m in mappings for v in m.values())]
            check_format(text, "{", _COMPUTED.search(text) is not None, values)
            return wrapper(*args, **kwargs)

        return formatted

    return wrap_str_format


def _reading(read: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    """The sandbox's reading of attributes, with shorter ways where it allows all public ones: of a
    dict, mostly its keys, of jinja's own loops and namespaces."""

    def read_attribute(of: Any, attribute: str) -> Any:
        kind = type(of)
        if kind is dict:
            if attribute in of and attribute not in _OF_DICTS:
                return of[attribute]
        elif (kind is LoopContext or isinstance(of, Namespace)) and attribute[:1] != "_":
            try:
                return getattr(of, attribute)
            except AttributeError:
                pass  # a name that it does not have is undefined, not an error
        return read(of, attribute)

    return read_attribute


def _calling(call: Callable[..., Any]) -> Callable[..., Any]:
    """The sandbox's call, counted. What asks for nothing of the template's is called directly."""

    def counted_call(context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        count_turns()
        kind = type(function)
        if kind is Macro:
            _without_variables(kwargs)
            result = function(context.eval_ctx, *args, **kwargs)
        elif kind is BuiltinMethodType and type(function.__self__) in SIZED:
            _without_variables(kwargs)
            _check_method(function.__self__, function.__name__, args, kwargs)
            result = function(*args, **kwargs)
        else:
            if kind is BuiltinMethodType and has_wide([*args, *kwargs.values()]):
                raise TooLongError
            if kind is LoopContext and args:  # loop(...) of a recursive loop
                args = (counted_turns(args[0]), *args[1:])
            result = call(context, function, *args, **kwargs)
        return result if type(result) is str and len(result) < LARGE else keep(result)

    return counted_call


def _without_variables(kwargs: dict[str, Any]) -> None:
    """Without what jinja passes along for functions that ask for the context."""
    if kwargs:
        kwargs.pop("_block_vars", None)
        kwargs.pop("_loop_vars", None)


def _check_method(own: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise unless what a method of a text, a list or a mapping makes of it is small."""
    if len(own) > LARGE:
        spend(len(own))
    if name not in _GROWING:
        return
    given = [*args, *kwargs.values()]
    if has_wide(given):
        raise TooLongError
    if name == "join" and isinstance(given[0], list | tuple):
        spend(estimate_size(given[0]) + len(own) * len(given[0]))
    elif name == "replace" and len(given) > 1:
        spend(replaced_size(own, given[0], given[1]))
    elif name == "expandtabs":
        tab: Any = "\t" if isinstance(own, str) else b"\t"
        spend(own.count(tab) * max([8, *given]))
    elif name == "translate" and isinstance(given[0], Mapping):
        spend(len(own) * max([1, *map(estimate_size, given[0].values())]))


def _filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter with bounds on what it makes."""
    if name in _HARMLESS:
        return function
    at = 1 if hasattr(function, "jinja_pass_arg") else 0
    check = GROWN.get(name)

    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        value = args[at]
        if isinstance(value, SIZED) and len(value) > LARGE:
            spend(len(value))
        if len(args) > at + 1 or kwargs:
            given = [*args[at + 1 :], *kwargs.values()]
            if has_wide(given):
                raise TooLongError
            if check:
                spend(check(value, given))
        result = function(*args, **kwargs)
        if isinstance(result, GeneratorType):
            return counted_items(result)
        # A part of a list, or its values in another order, is not larger than it.
        return result if isinstance(value, SIZED) and isinstance(result, list) else keep(result)

    return bounded
