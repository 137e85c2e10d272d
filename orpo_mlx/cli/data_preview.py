"""`orpo-mlx data preview`: pairs as the model sees them, colored by their role in the loss."""

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

from orpo_mlx.cli.command import Output, config_command
from orpo_mlx.cli.streams import printable
from orpo_mlx.config.data import DataPreviewConfig

if TYPE_CHECKING:
    from rich.text import Text

    from orpo_mlx.review.pairs.preview import Preview
    from orpo_mlx.review.pairs.view import PairView, Span

STYLES = {
    "prompt": "",
    "chosen": "green",
    "rejected": "red",
    "cut": "bright_black strike",
    "special": "magenta",
    "text": "bold yellow reverse",
    "speaker": "bold",
}
# Marks for what would otherwise be shown by color alone.
BRACKETS = {"cut": ("⟪", "⟫"), "text": ("⟦", "⟧")}
CUT_ENDS = 200  # characters that are shown of each end of a long text that is cut


@config_command("preview", DataPreviewConfig)
def command(config: DataPreviewConfig, output: Output) -> None:
    """Show pairs exactly as the model sees them.

    With --model: the tokens of each pair as the template makes them, cut to length and marked by
    their role in the loss. Without: the messages that the rows were read as.

    \b
    Example:
      orpo-mlx data preview pairs.jsonl --model ./base -n 5
    """
    from orpo_mlx.files import recover
    from orpo_mlx.review.pairs.preview import preview, save_preview
    from orpo_mlx.review.pairs.read_sources import refuse_existing

    if config.html:
        refuse_existing([config.html], "--html", config.overwrite, config.data)
    with output.progress(mlx=False) as report:
        shown = preview(config, report)
        if config.html:
            recover(config.html, report)
            save_preview(shown, config.html)
            report.log(f"Page written: {config.html}")
    output.result(shown.as_dict(), preview_lines(shown), soft_wrap=True)


def preview_lines(shown: "Preview") -> Iterator["Text"]:
    """The lines of a preview on the terminal."""
    from rich.text import Text

    yield from map(Text, map(printable, shown.notices))
    if shown.model:
        yield _legend()
    else:
        yield Text("Messages as they are in the rows; --model shows the exact tokens.")
    for number, pair in enumerate(shown.pairs, start=1):
        yield Text()
        yield Text(
            f"{number} of {len(shown.pairs)} · {printable(pair.location)}", style="bold underline"
        )
        yield from _pair_lines(pair, exact=bool(shown.model))


def _pair_lines(pair: "PairView", *, exact: bool) -> Iterator["Text"]:
    from rich.text import Text

    if pair.left_out:
        yield Text(f"left out: {printable(pair.left_out)}", style="bold red")
    for note in pair.notes:
        yield Text(f"note: {printable(note)}", style="yellow")
    for name, spans in pair.parts.items():
        cut = sum(len(span.ids) for span in spans if span.role == "cut")
        more = f", {cut:,} more cut" if cut else ""
        count = f" · {pair.tokens[name]:,} tokens{more}" if exact else ""
        yield Text(f"{name}{count}", style=f"bold {STYLES[name]}")
        line = Text()
        for is_cut, run in groupby(spans, key=lambda span: span.role == "cut"):
            line.append_text(_in_brackets("cut" if is_cut else "", *map(_span, run)))
        yield line if exact else line[1:]


def _span(span: "Span") -> "Text":
    """The text of a span in the color of its mark, or else of its role."""
    from rich.text import Text

    from orpo_mlx.review.pairs.visible import iter_pieces

    style = STYLES[span.role] if span.role == "cut" else STYLES[span.mark or span.role]
    text = _shorten(span.text) if span.role == "cut" else span.text
    line = Text(style=style)
    for piece in iter_pieces(text):
        line.append(piece.text, style="dim" if piece.is_sign else "")
    if span.mark == "speaker":
        return Text.assemble("\n", line, ": ")
    return line if span.role == "cut" else _in_brackets(span.mark, line)


def _in_brackets(name: str, *parts: "Text") -> "Text":
    from rich.text import Text

    opening, closing = BRACKETS.get(name, ("", ""))
    return Text.assemble((opening, STYLES.get(name, "")), *parts, (closing, STYLES.get(name, "")))


def _shorten(text: str) -> str:
    left = len(text) - 2 * CUT_ENDS
    return text if left < CUT_ENDS else f"{text[:CUT_ENDS]} [{left:,} more] {text[-CUT_ENDS:]}"


def _legend() -> "Text":
    from rich.text import Text

    from orpo_mlx.review.pairs.preview import MEANINGS

    parts: list[Any] = []
    for role, meaning in MEANINGS.items():
        opening, closing = BRACKETS.get(role, ("", ""))
        parts += [(f"{opening}{role}{closing}", STYLES[role]), f" {meaning} · "]
    parts += [("<token>", STYLES["special"]), " control token · "]
    parts += [("⟦<token>⟧", STYLES["text"]), " one from the text itself · [↵→·] hidden spaces"]
    return Text.assemble(*parts)
