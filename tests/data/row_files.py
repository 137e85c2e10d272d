"""Rows written to files for the tests of reading."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_rows(file: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Rows as JSON Lines."""
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file
