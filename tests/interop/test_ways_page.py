"""docs/interop.md's first table: every architecture by every way out, from what the tests prove.

`python -m tests.interop.test_ways_page` writes it again.
"""

from pathlib import Path

from orpo_mlx.interop.checkpoint import folder
from orpo_mlx.interop.gguf import names
from orpo_mlx.interop.peft import exporter
from tests.families import FAMILIES

PAGE = Path(__file__).parents[2] / "docs" / "interop.md"
BEGIN = "<!-- Written by `python -m tests.interop.test_ways_page`. Edits here are lost. -->\n"
END = "<!-- end of the table of ways -->\n"
HEAD = """
| Architecture | fuse | PEFT and back | Hugging Face folder | adapter as GGUF | model as GGUF |
| --- | --- | --- | --- | --- | --- |
"""


def render_table() -> str:
    """A row a family; tests parametrized by the same lists run each of them."""
    others = {*FAMILIES, *folder.PROVEN, *names.PROVEN} - {*exporter.PROVEN}
    return HEAD + "".join(map(_row, [*exporter.PROVEN, *sorted(others)]))


def _row(family: str) -> str:
    ways = [
        "yes" if family in {*FAMILIES, *exporter.PROVEN} else "-",  # tests/parity/test_fuse.py
        "yes" if family in exporter.PROVEN else "-",  # tests/parity/test_peft_families.py
        _folder(family),  # tests/parity/test_hf_layout.py
        "yes"
        if family in names.PROVEN  # tests/parity/test_llama_cpp.py
        else "unproven"
        if family in names.UNPROVEN
        else "refused",
        "yes" if family in names.PROVEN else "refused",
    ]
    return f"| `{family}` | {' | '.join(ways)} |\n"


def _folder(family: str) -> str:
    if family in folder.PROVEN:
        return "yes"
    return "refused" if family in folder.REFUSED else "-"


def written(text: str) -> str:
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + render_table() + END + rest.partition(END)[2]


def test_the_table_says_what_the_tests_prove() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == written(text), "stale: run `python -m tests.interop.test_ways_page`"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
