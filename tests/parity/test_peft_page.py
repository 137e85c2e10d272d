"""docs/interop.md's table of PEFT's architectures has the results of the comparisons.

`python -m tests.parity.test_peft_page` writes it again.
"""

import tempfile
from pathlib import Path

import pytest

from orpo_mlx.interop.peft.exporter import PROVEN
from tests.families import FAMILIES
from tests.parity.peft_comparison import outcome

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"),
]
PAGE = Path(__file__).parents[2] / "docs" / "interop.md"
BEGIN = "<!-- Written by `python -m tests.parity.test_peft_page`. Edits here are lost. -->\n"
END = "<!-- end of the table of PEFT -->\n"
HEAD = """
| Architecture | To PEFT and back | Modules | Why |
| --- | --- | --- | --- |
"""


def render_table() -> str:
    """The table, from the very comparisons that test_peft_families makes."""
    with tempfile.TemporaryDirectory() as folder:
        families = [*PROVEN, *(f for f in FAMILIES if f not in PROVEN)]
        rows = [outcome(family, Path(folder) / family) for family in families]
    lines = [f"| `{r.family}` | {r.word} | {r.modules} | {r.why} |\n" for r in rows]
    return HEAD + "".join(lines)


def test_the_table_says_what_the_comparisons_found() -> None:
    text = PAGE.read_text(encoding="utf-8")
    table = text.partition(BEGIN)[2].partition(END)[0]
    assert table == render_table(), "stale: run `python -m tests.parity.test_peft_page`"


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + render_table() + END + after, encoding="utf-8")
