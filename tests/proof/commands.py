"""The options of every command, as click and the settings classes declare them; no words of help.

The classes are found by their fields, wherever they are declared.
"""

from collections.abc import Iterator
from typing import Any

import click
from pydantic import BaseModel

import orpo_mlx
from orpo_mlx.cli.main import group

# Of a field's JSON schema: words, and what they are set out by.
WORDS = {"description", "title", "section", "unit", "metavar", "shown_default"}


def every_option() -> dict[str, Any]:
    """`command -> option -> how it is written, its type, bounds and default`."""
    return {name: _options(command) for name, command in iter_commands(group, "")}


def iter_commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Every command, by its name behind `orpo-mlx`."""
    yield name.strip(), command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for child in command.list_commands(context):
            subcommand = command.get_command(context, child)
            assert subcommand
            yield from iter_commands(subcommand, f"{name} {child}")


def _options(command: click.Command) -> dict[str, Any]:
    params = [param for param in command.params if param.name]
    fields = _fields({str(param.name) for param in params})
    options: dict[str, Any] = {}
    for param in params:
        facts = options.setdefault(str(param.name), {"written": [], **fields.get(param.name, {})})
        how = {
            "kind": param.param_type_name,
            "names": [*param.opts, *param.secondary_opts],
            "type": param.type.name,
            "nargs": param.nargs,
            "multiple": param.multiple,
            "required": param.required,
            "flag": _is_flag(param),
            "off": getattr(param, "flag_value", None) is False,
        }
        facts["written"].append(how)
    return options


def _is_flag(param: click.Parameter) -> bool:
    return isinstance(param, click.Option) and bool(param.is_flag)


def _fields(names: set[str]) -> dict[str, Any]:
    """The settings class of a command is the least one that has all its options."""
    top = next(c for c in reversed(orpo_mlx.TrainConfig.__mro__) if issubclass(c, BaseModel))
    kinds = [kind for kind in _subclasses(top) if kind.__name__.endswith("Config")]
    values = {"config_file", "as_json", "quiet"}
    fitting = [kind for kind in kinds if names - values <= kind.model_fields.keys()]
    if not fitting or not names - values:
        return {}  # --version, --json and --quiet stand for themselves
    kind = min(fitting, key=lambda kind: len(kind.model_fields))
    schema = kind.model_json_schema()["properties"]
    return {
        name: {key: value for key, value in schema[name].items() if key not in WORDS}
        | {"needed": field.is_required()}
        for name, field in kind.model_fields.items()
    }


def _subclasses(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)
