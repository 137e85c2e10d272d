"""docs/cli.md: every command and option, rendered from their declarations."""

from inspect import cleandoc

import click

from orpo_mlx.cli.main import COMMANDS, group
from orpo_mlx.cli.options import FieldOption, Row, sections

INTRODUCTION = """\
# Command line

<!-- Made by `make docs` from orpo_mlx/config.py and orpo_mlx/cli/. Edits here are lost. -->

An option can be given as a flag, or under its key in a YAML file that `--config` names. A flag goes
before the file, the file before the default. `--no-FLAG` turns off a switch that the file turned
on. Unknown flags and keys are errors.

Results go to standard output, everything else to standard error. The exit status is 0, or 1 for
what you can mend (one message says what), or 130 when interrupted.
"""
TABLE_HEAD = ["| Flag | Value | Default | Key | Meaning |", "| --- | --- | --- | --- | --- |"]


def render_cli_docs() -> str:
    """The text of docs/cli.md."""
    rows = [f"| [`{name}`](#orpo-mlx-{name}) | {text} |" for name, text in COMMANDS.items()]
    index = "\n".join(["| Command | |", "| --- | --- |", *rows])
    with click.Context(group, info_name="orpo-mlx", **group.context_settings) as parent:
        parts = [_render_command(name, parent) for name in COMMANDS]
    return "\n".join([INTRODUCTION, index, "", *parts])


def _render_command(name: str, parent: click.Context) -> str:
    command = group.get_command(parent, name)
    assert command is not None
    text, _, example = cleandoc(command.help or "").partition("\b\nExample:\n")
    usage = [f"{parent.info_name} {name} [OPTIONS]", *(e.strip() for e in example.splitlines())]
    lines = [f"## orpo-mlx {name}", "", text.strip(), "", "```", *usage, "```", ""]
    ctx = click.Context(command, info_name=name, parent=parent)
    for section, params in sections(command, ctx).items():
        rows = [_table_line(_row(param)) for param in params if isinstance(param, click.Option)]
        lines += [f"**{section}**", "", *TABLE_HEAD, *rows, ""]
    return "\n".join(lines)


def _row(param: click.Option) -> Row:
    if isinstance(param, FieldOption):
        return param.row
    return Row([*param.opts], param.metavar or "", "", param.help or "", "")


def _table_line(row: Row) -> str:
    flags = ", ".join(f"`{flag}`" for flag in row.flags)
    value = f"`{row.value}`" if row.value else ""
    key = f"`{row.key}`" if row.key else ""
    cells = [flags, value, row.default, key, row.help.replace("<", "\\<")]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
