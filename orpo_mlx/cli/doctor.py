"""`orpo-mlx doctor`: verdicts line by line. Imports nothing that a broken installation breaks."""

import json
import os
import sys
import time

import click

from orpo_mlx.cli.output import output_options
from orpo_mlx.doctor.process import diagnose
from orpo_mlx.doctor.verdict import Check, Running, passed, render_check, render_summary


@click.command("doctor")
@output_options
def command(as_json: bool, quiet: bool) -> int:
    """Check this installation, and that this machine computes correctly.

    Looks at Python, platform, packages, device and memory; compares the fast path with the plain
    one, and the GPU with the CPU, on tiny random models; trains one for ten steps and loads what
    it saved. Takes under 90 seconds, needs no network and leaves nothing behind.
    """
    started = time.perf_counter()
    checks: list[Check] = []
    progress = _Progress(quiet=quiet)
    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for event in diagnose():
        progress.clear()
        if isinstance(event, Running):
            progress.show(f"{event.name} ...")
        else:
            checks.append(event)
            if not as_json:
                click.echo(render_check(event, color=color))
    seconds = time.perf_counter() - started
    if as_json:
        verdicts = [check._asdict() for check in checks]
        click.echo(json.dumps({"ok": passed(checks), "seconds": seconds, "checks": verdicts}))
    else:
        click.echo(f"\n{render_summary(checks, seconds)}")
    return int(not passed(checks))


class _Progress:
    """On a terminal a line that the next one replaces; elsewhere a line each, on stderr."""

    def __init__(self, *, quiet: bool):
        self.quiet = quiet
        self.live = sys.stderr.isatty()

    def show(self, text: str) -> None:
        if not self.quiet:
            click.echo(text, err=True, nl=not self.live)

    def clear(self) -> None:
        if self.live and not self.quiet:
            click.echo("\r\x1b[2K", err=True, nl=False, color=True)
