"""`orpo-mlx`: the group of commands, each loaded only when it is called, and how errors end."""

import sys

import click

from orpo_mlx import __version__
from orpo_mlx.cli.groups import LazyGroup
from orpo_mlx.errors import OrpoError

# name -> what `orpo-mlx --help` shows; the command lives in cli/<name>.py
COMMANDS = {
    "demo": "Train a small chat model on bundled pairs and show before and after.",
    "train": "Train an adapter on preference pairs with ORPO.",
    "evaluate": "Measure a base and its adapter on held-out pairs.",
    "generate": "Let a base, or a base with an adapter, answer a prompt.",
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
    try:
        status = group.main(arguments, prog_name="orpo-mlx", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.UsageError as error:
        where = f" See: {error.ctx.command_path} --help" if error.ctx else ""
        click.echo(f"Error: {error.format_message()}{where}", err=True)
    except click.ClickException as error:
        click.echo(f"Error: {error.format_message()}", err=True)
    except OrpoError as error:
        click.echo(f"Error: {error}", err=True)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped.", err=True)
        return 130
    return 1


if __name__ == "__main__":
    main()
