"""General text in paragraphs: the bundled one, or a person's own. Imports no mlx."""

import re
from importlib.resources import files
from pathlib import Path

from orpo_mlx.data.reading.text_file import read_text
from orpo_mlx.errors import OrpoError

TEXT = "general.txt"
FEWEST = 2  # paragraphs: an interval over one is none


def load_paragraphs(file: Path | None) -> list[str]:
    """The paragraphs of a text, apart by empty lines; of the bundled one for None.

    Raises OrpoError for what cannot be read, and for fewer than two paragraphs.
    """
    if file is None:
        return _paragraphs(files(__package__).joinpath(TEXT).read_text(encoding="utf-8"))
    paragraphs = _paragraphs(read_text(file, "--forget-text"))
    if len(paragraphs) < FEWEST:
        raise OrpoError(
            f"--forget-text {file}: must hold {FEWEST} paragraphs or more, apart by empty lines, "
            f"found {len(paragraphs)}."
        )
    return paragraphs


def _paragraphs(text: str) -> list[str]:
    return [part.strip("\n") for part in re.split(r"\n\s*\n", text) if part.strip()]
