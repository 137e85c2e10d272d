"""`orpo-mlx generate`: one prompt, one answer, streamed."""

import json
import sys
from contextlib import redirect_stdout

import click

from orpo_mlx.cli.command import Output, config_command
from orpo_mlx.cli.streams import is_utf8, printable
from orpo_mlx.config.train import GenerateConfig
from orpo_mlx.errors import OrpoError


@config_command("generate", GenerateConfig)
def command(config: GenerateConfig, output: Output) -> None:
    """Let a base, or a base with an adapter, answer a prompt.

    \b
    Example:
      orpo-mlx generate --model ./base --adapter adapters/mine --prompt "How do I ...?"
    """
    prompt = _read_prompt(config.prompt)
    from orpo_mlx import backend

    backend.prepare()
    from orpo_mlx.review.answers.generate import generate, open_chat, typed_warnings

    with redirect_stdout(sys.stderr):
        chat = open_chat(config)
    if not output.quiet:
        for notice in chat.notices:
            click.echo(printable(notice), err=True)
        for name, text in (("--prompt", prompt), ("--system", config.system or "")):
            for warning in typed_warnings(chat.encoder, name, text):
                click.echo(f"Warning: {printable(warning)}", err=True)
    answer = None
    for answer in generate(chat, prompt, config):
        if not output.as_json:
            click.echo(printable(answer.piece), nl=False)  # --json has it as it is
    assert answer is not None
    if output.as_json:
        click.echo(
            json.dumps({"text": answer.text, "tokens": answer.tokens, "ended": answer.ended})
        )
    else:
        click.echo()
    if not output.quiet and not answer.ended:
        click.echo(f"(cut at --max-tokens {config.max_tokens})", err=True)


def _read_prompt(prompt: str) -> str:
    """The prompt, from standard input for "-"; raises OrpoError if there is no text."""
    if prompt != "-":
        text, where = prompt, "--prompt"
    else:
        if sys.stdin is None:
            raise OrpoError("--prompt - (standard input): it is closed.")
        if sys.stdin.isatty():
            click.echo("Type the prompt; Ctrl-D on a line of its own ends it.", err=True)
        try:
            text, where = sys.stdin.read(), "--prompt - (standard input)"
        except UnicodeDecodeError:
            raise OrpoError("--prompt - (standard input): not UTF-8 text.") from None
    if not text.strip():
        raise OrpoError(f"{where}: must not be empty.")
    if not is_utf8(text):
        raise OrpoError(f"{where}: not UTF-8 text.")
    return text
