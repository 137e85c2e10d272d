"""`orpo-mlx demo`: what it shows, and what it refuses before it fetches anything."""

import io

from rich.console import Console

from orpo_mlx.cli.demo import _side_by_side
from orpo_mlx.cli.main import run
from orpo_mlx.demo.before_after import BeforeAfter
from orpo_mlx.training.samples.answer import Answer


def test_answers_are_shown_side_by_side_as_the_model_wrote_them() -> None:
    before, after = Answer("", "see [/b] here", 9, False), Answer("", "press [b]OK[/b]", 9, True)
    shown = io.StringIO()
    Console(file=shown, width=60).print(_side_by_side(BeforeAfter("why [x]?", before, after)))
    lines = shown.getvalue().splitlines()
    assert lines[0].strip() == "why [x]?"
    assert [cell.strip() for cell in lines[4].split("│")[1:3]] == [
        "see [/b] here [cut]",
        "press [b]OK[/b]",
    ]


def test_answers_move_no_cursor() -> None:
    evil = Answer("", "a\x1b[2Jb\x07", 9, True)
    shown = io.StringIO()
    Console(file=shown, width=60).print(_side_by_side(BeforeAfter("why?", evil, evil)))
    assert "\x1b" not in shown.getvalue() and shown.getvalue().count("a\\x1b[2Jb\\x07") == 2


def test_a_wheel_that_is_not_there_is_one_error(tmp_path, capsys) -> None:
    missing = tmp_path / "base.whl"
    output = tmp_path / "run"
    assert run(["demo", "--base-wheel", str(missing), "--output", str(output)]) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and str(missing) in shown.err and "Traceback" not in shown.err
    assert not output.exists()
