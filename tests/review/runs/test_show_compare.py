"""A run whole, and runs next to each other: settings, metrics, checkpoints, curves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from orpo_mlx.errors import OrpoError
from orpo_mlx.review.run_summary import facts_of_run
from orpo_mlx.review.runs.compare import compare_runs, comparison_curves, names_of_runs
from orpo_mlx.review.runs.settings import changed_settings
from orpo_mlx.review.runs.show import curves_of, view_of
from orpo_mlx.run_folder.settings import load_run_config
from tests.review.runs.folders import ROWS, make_run, row

GIVEN: dict[str, Any] = {
    "beta": 0.5,
    "target_modules": ["q_proj"],
    "rslora": True,
    "steps": None,
    "epochs": 2.0,
    "max_seq_length": 512,
    "sample_prompts": Path("/p.txt"),
    "log_to": ["wandb"],
}


def test_the_settings_shown_are_those_that_were_given(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", **GIVEN)
    shown = changed_settings(load_run_config(run))
    expected = {n: str(v) if isinstance(v, Path) else v for n, v in GIVEN.items() if v is not None}
    assert shown == expected
    plain = make_run(tmp_path / "plain", steps=None)
    assert changed_settings(load_run_config(plain)) == {}
    full = make_run(tmp_path / "full", fine_tune_type="full", steps=None)
    assert changed_settings(load_run_config(full)) == {"fine_tune_type": "full"}


def test_a_view_has_metrics_checkpoints_answers_and_files(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ROWS, [5, 10, 20])
    answers = [
        {"step": step, "prompt": "Hi", "answer": f"at {step}", "finish": "stop", "tokens": 3}
        for step in (0, 10)
    ]
    (run / "samples.jsonl").write_text("".join(json.dumps(a) + "\n" for a in answers))
    with (run / "config.yaml").open("a") as file:
        file.write("adapter_step: 10\n")
    view = view_of(run)
    assert (view.start["eval_loss"], view.held_out["eval_loss"]) == (4.0, 3.125)
    assert (view.training["step"], view.training["loss"]) == (20, 2.0)
    assert [(c.step, c.best, c.size_bytes) for c in view.checkpoints] == [
        (5, False, 1000),
        (10, True, 1000),
        (20, False, 1000),
    ]
    assert view.adapter_step == 10
    assert view.answers == [answers[1]]
    assert view.files["checkpoints"] == 3000
    assert json.loads(json.dumps(view.as_dict(), default=str))["status"]["step"] == 20


def test_a_folder_without_a_run_names_those_in_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(OrpoError, match=f"{tmp_path} holds no run. Runs in it: {run}."):
        view_of(tmp_path)


def test_a_comparison_has_what_differs_and_the_last_metrics(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", ROWS, beta=0.2)
    two = make_run(tmp_path / "two", [row(1, 4.0), row(2, 2.0)], rank=8)
    result = compare_runs([one, two])
    assert result.settings == {"beta": [0.2, 0.1], "rank": [16, 8]}
    assert result.steps == [20, 2]
    assert result.held_out["loss"] == [3.125, None]
    assert result.training["loss"] == [2.0, 2.0]


def test_runs_are_called_by_the_last_part_of_their_path_if_that_differs() -> None:
    assert names_of_runs([Path("a/one"), Path("a/two")]) == ["one", "two"]
    assert names_of_runs([Path("a/one"), Path("b/one")]) == ["a/one", "b/one"]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def watched(self: Figure, *arguments: Any, **named: Any) -> None:
        figures.append(self)
        save(self, *arguments, **named)

    monkeypatch.setattr(Figure, "savefig", watched)
    return figures


def test_the_image_has_the_curves_of_all_runs(tmp_path: Path, drawn: list[Figure]) -> None:
    one = make_run(tmp_path / "one", ROWS)
    two = make_run(tmp_path / "two", [row(1, 4.0), row(2, 2.0)])
    assert comparison_curves([one, two]).startswith(b"\x89PNG")
    ((loss, accuracy, margin),) = [figure.axes for figure in drawn]
    curves = [np.array(line.get_xydata()).tolist() for line in loss.lines]
    assert curves == [
        [[float(s), 4.0 - s / 10] for s in range(1, 21)],
        [[0.0, 4.0], [10.0, 2.5], [20.0, 3.125]],
        [[1.0, 4.0], [2.0, 2.0]],
    ]
    legend = drawn[0].legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["one", "two"]
    assert len({line.get_color() for line in loss.lines}) == 2
    assert accuracy.lines[2].get_ydata()[-1] == 0.5
    assert margin.lines[2].get_ydata()[-1] == 0.25


def test_too_few_steps_to_draw_is_an_error(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [row(1, 4.0)])
    with pytest.raises(OrpoError, match="fewer than two steps"):
        curves_of(run)
    with pytest.raises(OrpoError, match="none of these runs has two steps"):
        comparison_curves([run, run])


def test_the_settings_of_a_card_name_the_optimizer(tmp_path: Path) -> None:
    lion = facts_of_run(make_run(tmp_path / "lion", optimizer="lion"))
    assert lion.settings["optimizer"] == "lion"
