"""Texts that a user names, read whole or refused with the option that names them."""

from pathlib import Path

from orpo_mlx.errors import OrpoError
from orpo_mlx.files import check_regular


def read_text(file: Path, flag: str = "") -> str:
    """A UTF-8 text; raises OrpoError, with the option that names it, if it cannot be read."""
    check_regular(file)
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise OrpoError(f"{flag} {file}: cannot be read ({why}).".lstrip()) from None
