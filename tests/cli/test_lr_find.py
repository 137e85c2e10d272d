"""`orpo-mlx lr-find` as a person runs it: table, JSON, picture, and the command to copy."""

import json
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.cli.lr_find import train_command
from orpo_mlx.config.search import LrFindConfig
from orpo_mlx.config.train import LearnOptions, TrainConfig
from orpo_mlx.extras import import_extra
from orpo_mlx.training.step import TrainStep
from tests import tiny
from tests.cli.conftest import Cli
from tests.search.short import SMALL, save_varied

pytestmark = pytest.mark.touchy

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama. Do not write there."""
    return tiny.save_base(tmp_path_factory.mktemp("base") / "small", **SMALL)


@pytest.fixture
def arguments(small: Path, tmp_path: Path) -> list[object]:
    """A search on few pairs, in the folder where `cli` runs."""
    save_varied(tmp_path / "pairs.jsonl", 40, 0)
    save_varied(tmp_path / "held.jsonl", 8, 1)
    return [
        *("lr-find", "--model", small, "--data", "pairs.jsonl", "--valid-data", "held.jsonl"),
        *("--batch-size", 2, "--steps", 4, "--rank", 4, "--max-seq-length", 128),
    ]


def test_table_json_and_picture_show_one_search(cli: Cli, arguments: list[object]) -> None:
    as_text = cli(*arguments)
    assert as_text.status == 0, as_text.err
    assert Path("lr-find.png").read_bytes().startswith(PNG)
    as_json = cli(*arguments, "--json", "--plot", "other.png")
    facts = json.loads(as_json.out)
    assert Path("other.png").read_bytes() == Path("lr-find.png").read_bytes()
    assert facts["plot"] == "other.png"
    (search,) = facts["searches"]
    rows = [line.split("│")[1:-1] for line in as_text.out.splitlines() if line.startswith("│")]
    shown = [[cell.strip() for cell in row] for row in rows]
    expected = [search["before"], *sorted(search["runs"], key=by_steps_and_rate)]
    assert [row[1:6] for row in shown] == [
        [str(run["steps"]), *(number(run[name]) for name in NUMBERS)] for run in expected
    ]
    assert [row[0] for row in shown[1:]] == [f"{run['learning_rate']:.2g}" for run in expected[1:]]
    rate = search["learning_rate"]
    *_, reason, suggested, command = as_text.out.splitlines()
    assert reason == search["reason"]
    assert suggested == f"Suggested: --learning-rate {rate:g}"
    assert f"--learning-rate {rate:g} --output adapters/mine" in command
    assert [row[6] for row in shown].count("best") == 1


NUMBERS = ("train_loss", "held_out_loss", "accuracy", "log_odds")


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def by_steps_and_rate(run: dict[str, Any]) -> tuple[int, float]:
    return run["steps"], run["learning_rate"]


def test_the_command_to_copy_makes_the_same_run(cli: Cli, small: Path, tmp_path: Path) -> None:
    """Whatever kinds of options were given: lists, columns, switches, texts that look otherwise."""
    given: dict[str, Any] = {
        "model": str(small), "data": ["a b.jsonl:2", "c.jsonl"], "columns": {"prompt": "question"},
        "template_args": {"tone": "kind", "version": "3", "level": 3}, "rslora": True,
        "grad_checkpoint": False, "target_modules": ["q_proj", "v_proj"], "epochs": 0.5,
        "template_date": "2026-01-02", "micro_batch_size": 2, "thinking": "on", "warmup": 0.25,
    }  # fmt: skip
    config = LrFindConfig.model_validate(given | {"learning_rate": 1.0, "overwrite": True})
    words = shlex.split(train_command(config, 1.5e-4))
    assert words[:2] == ["orpo-mlx", "train"]
    read: list[TrainConfig] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "orpo_mlx.training.loop.train", lambda config, _: read.append(config) or 1 / 0
        )
        with pytest.raises(ZeroDivisionError):
            cli(*words[1:])
    assert "--no-grad-checkpoint" not in words  # nor other defaults, as a run's settings have them
    (made,) = read
    expected = config.train_config(Path("adapters/mine"))
    for name in LearnOptions.model_fields:
        should = 1.5e-4 if name == "learning_rate" else getattr(expected, name)
        assert getattr(made, name) == should, name
    assert made.output == Path("adapters/mine")


def test_a_picture_is_not_replaced_unasked(cli: Cli, arguments: list[object]) -> None:
    Path("lr-find.png").write_text("mine")
    refused = cli(*arguments)
    assert (refused.status, refused.out) == (1, "")
    assert "--plot lr-find.png exists. Replace it with --overwrite, or name another." in refused.err
    assert Path("lr-find.png").read_text() == "mine"
    assert cli(*arguments, "--overwrite").status == 0
    assert Path("lr-find.png").read_bytes().startswith(PNG)


def test_without_matplotlib_the_rest_is_shown(
    cli: Cli, arguments: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(module: str, extra: str) -> Any:
        return import_extra(f"no_{module}", extra)

    monkeypatch.setattr("orpo_mlx.search.picture.import_extra", without)
    result = cli(*arguments)
    assert result.status == 0
    assert "There is no picture: no_matplotlib is needed here" in result.err
    assert "Suggested: --learning-rate" in result.out
    assert not Path("lr-find.png").exists()


def swap(row: str) -> str:
    pair = json.loads(row)
    return json.dumps(pair | {"chosen": pair["rejected"], "rejected": pair["chosen"]})


def test_a_search_that_suggests_nothing_shows_no_command(cli: Cli, arguments: list[object]) -> None:
    save_varied(Path("pairs.jsonl"), 40, 0, shuffled=True)
    rows = Path("held.jsonl").read_text().splitlines()
    swapped = [swap(row) if n % 2 else row for n, row in enumerate(rows)]
    Path("held.jsonl").write_text("\n".join(swapped) + "\n")
    result = cli(*arguments)
    assert result.status == 0
    assert "No rate helps to prefer the chosen answers" in " ".join(result.out.split())
    assert "Suggested" not in result.out and "orpo-mlx train" not in result.out


def test_a_stopped_search_exits_with_130(
    cli: Cli, arguments: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    take = TrainStep.take
    steps_done: list[int] = []

    def interrupted(self: TrainStep, step: int) -> Any:
        steps_done.append(step)
        if len(steps_done) == 8:
            signal.raise_signal(signal.SIGINT)
        return take(self, step)

    monkeypatch.setattr(TrainStep, "take", interrupted)
    result = cli(*arguments, "--json")
    assert result.status == 130
    (search,) = json.loads(result.out)["searches"]
    assert search["stopped"] and search["learning_rate"] is None
    assert [run["steps"] for run in search["runs"]] == [3, 3]
