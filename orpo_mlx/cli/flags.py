"""Flags and help made from the declarations in config/, and the settings made from the flags."""

from collections.abc import Callable, Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from orpo_mlx.cli.settings import Layer, build_config, load_config_file, nearest
from orpo_mlx.config.groups import SECTIONS, Options
from orpo_mlx.config.words import flags_of

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=Options)
TYPE_NAMES: dict[Any, str] = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}


class OptionRow(NamedTuple):
    """What `--help` and docs/cli.md show of an option."""

    flags: list[str]
    value: str  # "" for a switch
    default: str
    help: str
    key: str  # in a YAML file


class FieldOption(click.Option):
    """The flag of a declared option."""

    def __init__(self, *arguments: Any, section: str, row: OptionRow, **settings: Any):
        super().__init__(*arguments, **settings)
        self.section, self.row = section, row


class FieldArgument(click.Argument):
    """A declared option without a flag: it takes the words that no flag takes (`SOURCE`)."""

    def __init__(self, *arguments: Any, section: str, row: OptionRow, **settings: Any):
        super().__init__(*arguments, **settings)
        self.section, self.row = section, row

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        return self.row.value, _help(self.row)


class ConfigCommand(click.Command):
    """A command with its options in sections; unknown flags are reported with all else."""

    def __init__(self, *arguments: Any, **settings: Any):
        settings["context_settings"] = {"ignore_unknown_options": True, "allow_extra_args": True}
        super().__init__(*arguments, **settings)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        super().parse_args(ctx, _repeat_flags(args, self._source_flags(ctx)))
        params = self.get_params(ctx)
        flags = [flag for p in params if isinstance(p, click.Option) for flag in p.opts]
        taker = next((p.name for p in params if isinstance(p, FieldArgument)), None)
        problems, words = _leftovers(ctx.params[taker] if taker else ctx.args, flags)
        if taker:
            ctx.params[taker] = tuple(words)
        elif words:
            hint = "each value follows its flag (--data A --data B), in quotes if it holds spaces"
            problems.append(f"{' '.join(words)}: belongs to no option; {hint}.")
        ctx.params["problems"] = problems
        ctx.args = []
        return []

    def _source_flags(self, ctx: click.Context) -> set[str]:
        options = (p for p in self.get_params(ctx) if isinstance(p, click.Option) and p.multiple)
        return {flag for param in options if param.metavar == "SOURCE" for flag in param.opts}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, params in sections(self, ctx).items():
            with formatter.section(section):
                records = [record for p in params if (record := p.get_help_record(ctx))]
                formatter.write_dl(records, col_max=26)


def _repeat_flags(args: list[str], repeatable: set[str]) -> list[str]:
    """`--data a b` as `--data a --data b`."""
    spread: list[str] = []
    flag, first = "", False
    for arg in args:
        if arg.startswith("-") and len(arg) > 1:
            name, equals, _ = arg.partition("=")
            flag, first = (name if name in repeatable else ""), not equals
        elif flag and not first:
            spread.append(flag)
        else:
            first = False
        spread.append(arg)
    return spread


def sections(command: click.Command, ctx: click.Context) -> dict[str, list[click.Parameter]]:
    """The visible options of a command by section, in the order of config.SECTIONS."""
    by_section: dict[str, list[click.Parameter]] = {name: [] for name in SECTIONS}
    for param in command.get_params(ctx):
        if isinstance(param, FieldOption | FieldArgument):
            by_section[param.section].append(param)
        elif isinstance(param, click.Option) and not param.hidden:
            by_section["Run"].append(param)
    return {name: params for name, params in by_section.items() if params}


def config_options(kind: type[Options]) -> Callable[[F], F]:
    """Decorate a click command with a flag for every field of `kind`, and --config."""

    def decorate(function: F) -> F:
        file = click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path),
            metavar="FILE.yaml",
            callback=lambda ctx, param, file: load_config_file(file) if file else None,
            help="YAML file with any of these options; flags win over it.",
        )
        function = file(function)
        for name, field in reversed(kind.model_fields.items()):
            for flag in _flags(kind, name, field):
                function = flag(function)
        return function

    return decorate


def settings_from(kind: type[C], flags: dict[str, Any], stored: Layer | None = None) -> C:
    """The validated settings: flags over --config over `stored` over defaults."""
    layers = [stored] if stored else []
    if flags.get("config_file"):
        layers.append(flags["config_file"])
    layers.append(Layer("", given_flags(kind, flags)))
    return build_config(kind, layers, flags.get("problems", ()))


def given_flags(kind: type[Options], flags: dict[str, Any]) -> dict[str, Any]:
    """The fields of `kind` that were given on the command line."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in flags.items()
        if name in kind.model_fields and value is not None and value != ()
    }


def option_row(kind: type[Options], name: str) -> OptionRow:
    """The row of a field."""
    field = kind.model_fields[name]
    extra = _extra(field)
    kinds = _plain_types(field.annotation)
    if bool in kinds:
        value = ""
    elif get_origin(kinds[0]) is Literal and len(kinds) == 1:
        value = f"[{'|'.join(map(str, get_args(kinds[0])))}]"
    else:
        value = extra["metavar"] or TYPE_NAMES[kinds[0]]
    return OptionRow(flags_of(kind, name), value, _default(field), field.description or "", name)


def _flags(kind: type[Options], name: str, field: FieldInfo) -> list[Callable[[Any], Any]]:
    row = option_row(kind, name)
    shared: dict[str, Any] = {"section": _extra(field)["section"], "row": row}
    if not row.flags[0].startswith("-"):
        return [click.argument(name, cls=FieldArgument, nargs=-1, metavar=row.value, **shared)]
    settings: dict[str, Any] = {"cls": FieldOption, "help": _help(row), **shared}
    if not row.value:
        switch: dict[str, Any] = {"type": bool, "default": None}
        off = click.option(
            f"--no-{name.replace('_', '-')}", name, flag_value=False, hidden=True, **switch
        )
        return [off, click.option(*row.flags, name, flag_value=True, **switch, **settings)]
    many = any(get_origin(t) in (list, dict) for t in _plain_types(field.annotation))
    return [click.option(*row.flags, name, metavar=row.value, multiple=many, type=str, **settings)]


def _help(row: OptionRow) -> str:
    facts = f" [{row.default}]" if row.default == "required" else f" [default: {row.default}]"
    return row.help + (facts if row.default else "")


def _default(field: FieldInfo) -> str:
    """The default as people write it; "" where there is none."""
    extra = _extra(field)
    value = field.get_default(call_default_factory=True)
    if field.is_required():
        return "required"
    if extra["shown_default"]:
        return str(extra["shown_default"])
    if value is None or value is False or value in ([], {}):
        return ""
    if isinstance(value, list):
        return ",".join(value)
    number = f"{value:g}" if isinstance(value, float) else str(value)
    return f"{number} {extra['unit']}".strip()


def _extra(field: FieldInfo) -> dict[str, Any]:
    extra = field.json_schema_extra
    assert isinstance(extra, dict), "declare options with config.option"
    return extra


def _plain_types(annotation: Any) -> list[Any]:
    """The types of an annotation without None and Annotated."""
    if get_origin(annotation) is Annotated:
        return _plain_types(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [t for a in get_args(annotation) if a is not NoneType for t in _plain_types(a)]
    return [annotation]


def _leftovers(args: Iterable[str], flags: list[str]) -> tuple[list[str], list[str]]:
    """A sentence for every flag that is unknown, and the words that belong to none."""
    problems, words, after_unknown = [], [], False
    for arg in args:
        if arg.startswith("-") and len(arg) > 1:
            flag, _, value = arg.partition("=")
            problems.append(f"{flag}: no such option.{nearest(flag, flags)}")
            after_unknown = not value
        elif not after_unknown:
            words.append(arg)
        else:
            after_unknown = False
    return problems, words
