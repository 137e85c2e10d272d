"""`orpo-mlx judge`: answers judged blind on a local page, and what the votes come to."""

import os
import shlex
import sys
import webbrowser
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from orpo_mlx.cli.command import Output, config_command
from orpo_mlx.config.judging import JudgeConfig
from orpo_mlx.extras import import_extra

if TYPE_CHECKING:
    from orpo_mlx.judging.outcome import SessionOutcome
    from orpo_mlx.judging.server.serve import Links
    from orpo_mlx.judging.session import Session

NEEDED = ("starlette", "uvicorn", "markdown_it", "pygments", "scipy")
INTERRUPTED = 130


@config_command("judge", JudgeConfig)
def command(config: JudgeConfig, output: Output) -> int | None:
    """Judge answers blind on a local page; the votes become preference pairs or a verdict.

    The page shows a prompt and two answers, not who gave them. Each vote is saved before the next
    item is shown: Ctrl-C stops, and the same command goes on.

    \b
    Example:
      orpo-mlx judge answers.jsonl
      orpo-mlx judge base.jsonl adapter.jsonl --for verdict
    """
    for module in NEEDED:
        import_extra(module, "judge")
    if config.forget_text:
        from orpo_mlx.review.forgetting.paragraphs import load_paragraphs

        load_paragraphs(config.forget_text)  # before anybody votes, whether it can be used
    from orpo_mlx.judging.session import open_session
    from orpo_mlx.search.child import has_parent, interrupted_with_parent
    from orpo_mlx.supervisor.signals import interrupting

    is_stage = has_parent()
    with (
        output.progress(mlx=False, bars=False) as display,
        open_session(config, display) as session,
    ):
        try:
            with interrupting(), interrupted_with_parent():
                result = (_outcome if config.result else _judge)(session, config, output, is_stage)
        except KeyboardInterrupt:
            again = shlex.join(["orpo-mlx", "judge", str(session.folder)])
            how = "" if is_stage else f" Go on with: {again}"
            click.echo(f"Stopped; every vote is kept.{how}", err=True)
            return INTERRUPTED
    output.result(result.facts, [*result.sentences, *result.tables])
    return None


def _outcome(
    session: "Session", config: JudgeConfig, output: Output, is_stage: bool
) -> "SessionOutcome":
    from orpo_mlx.judging.results import compute_outcome

    with output.progress(mlx=session.purpose == "verdict") as display:
        return compute_outcome(session, config, display, is_stage=is_stage)


def _judge(
    session: "Session", config: JudgeConfig, output: Output, is_stage: bool
) -> "SessionOutcome":
    from orpo_mlx.judging.results import power_notes
    from orpo_mlx.judging.server.serve import judge_on_page
    from orpo_mlx.judging.session import describe_session

    power = power_notes(session)
    if not output.quiet:
        for note in power:
            click.echo(note, err=True)
    return judge_on_page(
        session,
        config,
        notes=[*describe_session(session), *power],
        outcome=lambda: _outcome(session, config, output, is_stage),
        on_start=lambda links: _show(links, opens=config.open),
    )


def _show(links: "Links", *, opens: bool) -> None:
    """The links are shown even with --quiet: there is no other way to the page."""
    click.echo(f"Judge here: {links.local}", err=True)
    for link in links.network:
        click.echo(f"In the network: {link}", err=True)
    if links.network:
        click.echo(
            "Warning: this is plain http. Whoever has the link, or reads along in the network, can "
            "see the answers and vote.",
            err=True,
        )
    if opens and _has_screen():
        with suppress(webbrowser.Error):
            webbrowser.open(links.local)


def _has_screen() -> bool:
    """Whether a person sits here, and a browser would not take the terminal away."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    if "SSH_CONNECTION" in os.environ:
        return False
    return sys.platform == "darwin" or any(n in os.environ for n in ("DISPLAY", "WAYLAND_DISPLAY"))
