"""`orpo-mlx`: the group of commands, each loaded only when it is called, and how errors end."""

import os
import sys
from typing import TextIO

import click

from orpo_mlx import __version__
from orpo_mlx.cli.groups import LazyGroup
from orpo_mlx.cli.streams import forgiving_streams, printable, silence
from orpo_mlx.disk_errors import why_disk_refuses
from orpo_mlx.errors import OrpoError

# name -> what `orpo-mlx --help` shows; the command lives in cli/<name>.py
COMMANDS = {
    "demo": "Train a small chat model on bundled pairs and show before and after.",
    "train": "Train an adapter on preference pairs with ORPO.",
    "lr-find": "Suggest a learning rate by short runs on your own pairs.",
    "sweep": "Search settings of train: many runs, compared by their held-out loss.",
    "evaluate": "Measure a base and its adapter on held-out pairs.",
    "generate": "Let a base, or a base with an adapter, answer a prompt.",
    "sample": "Let a base and its adapters answer many prompts, into one file.",
    "judge": "Judge answers blind on a local page: votes become pairs or a verdict.",
    "loop": "Guide rounds of judging and training: each ends with a verdict on the new adapter.",
    "chat": "Talk with a base and its adapter, and vote on what they answer.",
    "runs": "List, show, compare, watch or clean runs.",
    "data": "Preview, check, count, split or convert preference data.",
    "convert": "Make an MLX folder of a Hugging Face or GGUF model, quantized if asked, or back.",
    "fuse": "Merge an adapter into its base: one folder that needs no adapter.",
    "export": "Write an adapter in PEFT's layout or as GGUF.",
    "import": "Import a PEFT adapter, to train it further, evaluate or fuse it.",
    "push": "Push an adapter, a model or pairs to the Hub.",
    "pull": "Fetch an adapter from the Hub.",
    "doctor": "Check this installation, and that this machine computes correctly.",
}


@click.group(
    cls=LazyGroup,
    texts=COMMANDS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="orpo-mlx")
@click.pass_context
def group(ctx: click.Context) -> None:
    """Align a language model on your own machine: ORPO with LoRA on MLX."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; user errors print one message and exit with 1."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """The exit status of one call: 0, 1 for what the user can fix, 130 when interrupted; or the
    command's own."""
    with forgiving_streams():
        try:
            status = group.main(arguments, prog_name="orpo-mlx", standalone_mode=False)
            return status if isinstance(status, int) else 0
        except click.UsageError as error:
            where = f" See: {error.ctx.command_path} --help" if error.ctx else ""
            _report(f"{error.format_message()}{where}")
        except click.ClickException as error:
            _report(error.format_message())
        except OrpoError as error:
            _report(str(error))
        except OSError as error:
            _report(refused_by_the_machine(error))
        except (click.Abort, KeyboardInterrupt):
            click.echo("Stopped.", err=True)
            return 130
    return 1


def _report(text: str) -> None:
    click.echo(f"Error: {printable(text)}", err=True)


def refused_by_the_machine(error: OSError) -> str:
    """A sentence for what no command can foresee; raises what is not the machine's."""
    if why := why_disk_refuses(error):
        if error.filename is None and _is_stuck(sys.stdout):
            silence(sys.stdout)
            return f"Standard output cannot be written: {why}."
        return f"{error.filename or 'A file'} cannot be written: {why}."
    if isinstance(error, FileNotFoundError) and not _current_folder_exists():
        return "The current folder was removed. Change to another one: cd ~"
    raise error


def _is_stuck(stream: TextIO) -> bool:
    """Whether a stream takes no further byte."""
    try:
        os.write(stream.fileno(), b"\n")
    except (OSError, ValueError):  # it has no file
        return True
    return False


def _current_folder_exists() -> bool:
    try:
        return bool(os.getcwd())  # noqa: PTH109
    except FileNotFoundError:
        return False
