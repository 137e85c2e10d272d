import re
from pathlib import Path

from orpo_mlx.cli.docs import render_cli_docs
from orpo_mlx.config.train import TrainConfig

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


def test_docs_cli_is_what_the_declarations_say() -> None:
    assert DOCS.read_text(encoding="utf-8") == render_cli_docs(), "stale: run `make docs`"


def test_every_option_of_train_has_its_row() -> None:
    train = render_cli_docs().split("## orpo-mlx train")[1].split("## orpo-mlx evaluate")[0]
    for key in TrainConfig.model_fields:
        assert f" | `{key}` | " in train


def test_examples_are_in_blocks_and_nothing_controls_a_terminal() -> None:
    page = render_cli_docs()
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", page)
    blocks = re.findall(r"^```\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    for command in ("convert", "fuse", "train"):
        (usage,) = [b for b in blocks if b.startswith(f"orpo-mlx {command} ")]
        assert len(usage.splitlines()) >= 2, usage
