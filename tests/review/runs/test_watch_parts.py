"""Following a file that another process writes, and one screen of curves."""

import json
from pathlib import Path

import pytest
from rich.text import Text

from orpo_mlx.review.runs import screen
from orpo_mlx.review.runs.follow import Follower
from orpo_mlx.review.runs.screen import render_screen
from tests.review.runs.folders import ROWS, row


def test_a_follower_gives_each_row_once_and_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    follower = Follower(tmp_path)
    assert follower.poll() == []  # not there yet
    file = tmp_path / "metrics.jsonl"
    first, second = (json.dumps(row(step, 2.0)) for step in (1, 2))
    file.write_text(f"{first}\n{second[:10]}")
    assert [r["step"] for r in follower.poll()] == [1]
    assert follower.poll() == []
    with file.open("a") as stream:
        stream.write(f"{second[10:]}\nnot a row\n")
    assert follower.poll() == [row(2, 2.0)]
    assert [r["step"] for r in follower.rows] == [1, 2]


def test_a_file_that_a_resumed_run_has_cut_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(row(s, 2.0)) + "\n" for s in (1, 2, 3)))
    follower = Follower(tmp_path)
    follower.poll()
    new = tmp_path / "new"
    new.write_text("".join(json.dumps(row(s, 9.0)) + "\n" for s in (1, 2, 3, 4)))
    new.replace(file)
    assert [r["loss"] for r in follower.poll()] == [9.0] * 4
    assert follower.rows == [row(s, 9.0) for s in (1, 2, 3, 4)]


@pytest.mark.parametrize("rows", [[], ROWS[:1], ROWS], ids=["none", "one", "all"])
@pytest.mark.parametrize(("width", "height"), [(80, 20), (120, 40), (40, 8)])
def test_a_screen_fills_what_it_is_given(rows: list, width: int, height: int) -> None:
    lines = Text.from_ansi(render_screen(rows, width, height)).plain.splitlines()
    assert len(lines) == height
    assert max(map(len, lines)) == width


def test_a_screen_shows_the_range_of_loss_and_accuracy() -> None:
    text = Text.from_ansi(render_screen(ROWS, 100, 20)).plain
    assert "loss: line training, ● held-out" in text and "accuracy: line" in text
    assert "4.0" in text and "2.0" in text  # losses from 4 down to 2
    assert text.count("●") == 2 + 2 * 3  # the titles, and three validations in each


def test_a_long_curve_is_drawn_by_the_means_of_neighboring_points() -> None:
    rows = [row(step, float(step)) for step in range(1, 1002)]
    steps, values = screen._points(rows, "loss")
    # 1,001 points by threes: 333 whole groups, and one of two.
    assert len(steps) == 334
    assert steps[:2] + steps[-1:] == [3, 6, 1001]
    assert values[:2] + values[-1:] == [2.0, 5.0, 1000.5]
