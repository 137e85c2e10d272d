"""docs/cli.md: every command and option, rendered from their declarations."""

import re
from inspect import cleandoc

import click

from orpo_mlx.cli.flags import FieldArgument, FieldOption, OptionRow, sections
from orpo_mlx.cli.groups import LazyGroup
from orpo_mlx.cli.main import group

INTRODUCTION = """\
# Command line

<!-- Made by `make docs` from orpo_mlx/config/ and cli/. Edits here are lost. -->

An option can be given as a flag, or under its key in a YAML file that `--config` names. A flag
overrides the file, and the file overrides the default. `--no-FLAG` turns off a switch that the file
turned on. Unknown flags and keys are errors.

Results go to standard output, everything else to standard error. The exit status is 0, or 1 for
what you can fix (one message says what), 2 for severe findings of `data check --strict`, or 130
when interrupted.
"""
TABLE_HEAD = ["| Flag | Value | Default | Key | Meaning |", "| --- | --- | --- | --- | --- |"]


def render_cli_docs() -> str:
    """The text of docs/cli.md."""
    with click.Context(group, info_name="orpo-mlx", **group.context_settings) as parent:
        parts = [_render(name, group, parent) for name in group.texts]
    return "\n".join([INTRODUCTION, _index(group, "orpo-mlx"), "", *parts])


def _index(group: LazyGroup, path: str) -> str:
    """A table of a group's commands, each with a link to its section."""
    rows = [
        f"| [`{name}`](#{path.replace(' ', '-')}-{name}) | {text} |"
        for name, text in group.texts.items()
    ]
    return "\n".join(["| Command | |", "| --- | --- |", *rows])


def _render(name: str, group: LazyGroup, parent: click.Context) -> str:
    """The section of a command, or of a group and then those of its commands."""
    command = group.get_command(parent, name)
    assert command is not None
    text, *examples = re.split(r"\x08\nExamples?:\n", cleandoc(command.help or ""))
    ctx = click.Context(command, info_name=name, parent=parent)
    heading = f"## {ctx.command_path}\n\n{text.strip()}\n"
    if isinstance(command, LazyGroup):
        parts = [_render(inner, command, ctx) for inner in command.texts]
        return "\n".join([heading, _index(command, ctx.command_path), "", *parts])
    usage = [" ".join([ctx.command_path, *command.collect_usage_pieces(ctx)])]
    lines = [
        heading,
        "```",
        *usage,
        *(e.strip() for e in "".join(examples).splitlines()),
        "```",
        "",
    ]
    for section, params in sections(command, ctx).items():
        lines += [f"**{section}**", "", *TABLE_HEAD, *(_table_line(_row(p)) for p in params), ""]
    return "\n".join(lines)


def _row(param: click.Parameter) -> OptionRow:
    if isinstance(param, FieldOption | FieldArgument):
        return param.row
    assert isinstance(param, click.Option)
    return OptionRow([*param.opts], param.metavar or "", "", param.help or "", "")


def _table_line(row: OptionRow) -> str:
    flags = ", ".join(f"`{flag}`" for flag in row.flags)
    value = f"`{row.value}`" if row.value else ""
    key = f"`{row.key}`" if row.key else ""
    cells = [flags, value, row.default, key, row.help.replace("<", "\\<")]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
