"""`orpo-mlx runs` as a person meets it: tables, JSON, questions, a second terminal."""

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orpo_mlx.cli import runs_watch
from orpo_mlx.cli.runs_list import age_text, runs_lines
from orpo_mlx.review.runs.status import status_of
from orpo_mlx.run_folder.lock import locked
from tests.cli.conftest import Cli
from tests.cli.test_main import HEAVY
from tests.review.runs.folders import ROWS, make_run, row


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs, a damaged one and a folder of something else, in adapters/."""
    monkeypatch.chdir(tmp_path)
    make_run(Path("adapters/one"), ROWS, [5, 10, 20])
    given: dict[str, Any] = {"rank": 8, "epochs": 1, "steps": None, "log_to": ["tensorboard"]}
    make_run(Path("adapters/two"), [row(1, 4.0), row(2, 2.0)], **given)
    make_run(Path("adapters/broken"))
    Path("adapters/broken/config.yaml").write_text("[")
    Path("adapters/other").mkdir()


def test_runs_alone_lists_the_runs_in_adapters(cli: Cli) -> None:
    result = cli("runs")
    assert (result.status, result.err) == (0, "")
    head, *lines = result.out.splitlines()
    assert head.split() == ["run", "base", "data", "step", "loss", "acc", "state", "size", "age"]
    cells = [line.split() for line in lines[:3]]
    assert cells[0][:2] == ["adapters/broken", "damaged"]
    assert cells[1][:7] == [
        "adapters/one",
        "org/base",
        "pairs.jsonl",
        "20/20",
        "3.125",
        "0.32",
        "done",
    ]
    assert cells[2][:7] == [
        "adapters/two",
        "org/base",
        "pairs.jsonl",
        "2",
        "(2.000)",
        "(0.50)",
        "-",
    ]
    assert lines[3].startswith("adapters/broken: adapters/broken/config.yaml cannot be read")
    assert lines[4:] == ["adapters/other holds no run."]


def test_folders_may_follow_runs_or_runs_list(cli: Cli) -> None:
    asked = cli("runs", "adapters/one", "--json")
    assert asked.out == cli("runs", "list", "adapters/one", "--json").out
    (run,) = json.loads(asked.out)["runs"]
    assert (run["folder"], run["step"], run["held_out"]) == ("adapters/one", 20, True)
    assert cli("runs", "absent").status == 1
    assert "Usage: orpo-mlx runs" in cli("runs", "--help").out


@pytest.mark.touchy
def test_looking_at_runs_loads_no_mlx() -> None:
    code = (
        "import sys; from orpo_mlx.cli.main import run; run(['runs']); run(['runs', 'clean']); "
        "run(['runs', 'show', 'adapters/one']); sys.stdout.write('LOADED' + ' '.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, _, modules = done.stdout.partition("LOADED")
    assert "adapters/one  " in text and "adapters/one: done" in text
    light = {"numpy", "pyarrow"}  # by the readers of sources, whose names are shown
    assert not (HEAVY - light) & {name.split(".")[0] for name in modules.split()}


def test_a_narrow_terminal_cuts_names_and_no_number() -> None:
    statuses = [status_of(Path("adapters") / name) for name in ("one", "two")]
    wide, narrow = runs_lines(statuses), runs_lines(statuses, 72)
    assert max(map(len, wide)) > 72 >= max(map(len, narrow))
    assert [line.split()[-6:] for line in wide] == [line.split()[-6:] for line in narrow]
    assert narrow[1].startswith("…") and "/one " in narrow[1]


def test_an_age_is_in_the_unit_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    import datetime as dt

    def ago(**passed: int) -> str:
        return age_text((dt.datetime.now().astimezone() - dt.timedelta(**passed)).isoformat())

    ages = [ago(), ago(minutes=3), ago(hours=5), ago(hours=47), ago(days=9), age_text("")]
    assert ages == ["now", "3 min", "5 h", "47 h", "9 d", ""]


def test_show_has_every_part_of_a_run(cli: Cli) -> None:
    result = cli("runs", "show", "adapters/one")
    lines = result.out.splitlines()
    assert lines[0] == "adapters/one: done"
    assert "  step       20/20" in lines
    assert "  steps  20" in lines[lines.index("Settings other than the defaults:") :]
    assert "  loss                        2.0000    3.1250    4.0000" in lines
    assert [line for line in lines if "the best validation" in line] == [
        "  step-0000010  1.0 kB  the best validation"
    ]
    shown = json.loads(cli("runs", "show", "adapters/one", "--json").out)
    assert shown["status"]["state"] == "done" and shown["png"] is None


def test_images_are_written_and_replaced_only_when_asked(cli: Cli) -> None:
    show = ("runs", "show", "adapters/one", "--png", "a.png")
    compare = ("runs", "compare", "adapters/one", "adapters/two", "--output", "b.png")
    for call, file in ((show, Path("a.png")), (compare, Path("b.png"))):
        assert f"{file}: the curves" in cli(*call).out
        assert file.read_bytes().startswith(b"\x89PNG")
        file.write_text("mine")
        refused = cli(*call)
        assert (refused.status, file.read_text()) == (1, "mine")
        assert f"{file} exists. Replace it with --overwrite" in refused.err
        assert cli(*call, "--overwrite").status == 0
        assert file.read_bytes().startswith(b"\x89PNG")


def test_compare_shows_what_differs(cli: Cli) -> None:
    shown = cli("runs", "compare", "adapters/one", "adapters/two").out
    lines = [line.split() for line in shown.splitlines()]
    assert lines[0] == ["setting", "one", "two"]
    assert ["rank", "16", "8"] in lines
    assert ["steps", "20", "-"] in lines
    assert ["log_to", "-", "tensorboard"] in lines
    assert ["training", "loss", "2.0000", "2.0000"] in lines
    assert ["held-out", "loss", "3.1250"] in lines
    same = cli("runs", "compare", "adapters/one", "adapters/one/")
    assert "must be 2 or more, found 1" in same.err


def test_runs_on_sft_rows_alone_show_their_data_and_loss(cli: Cli) -> None:
    rows = [{"step": step, "loss": 3.0 / step, "nll_loss/sft": 3.0 / step} for step in (1, 2)]
    make_run(Path("adapters/sft"), rows, data=[], sft_data=["task.jsonl"])
    lines = cli("runs", "show", "adapters/sft").out.splitlines()
    assert "  data       task.jsonl" in lines
    begin = lines.index("Metrics at step 2:          training")
    assert [line.split() for line in lines[begin + 1 :][:2]] == [
        ["loss", "1.5000"],
        ["nll_loss/sft", "1.5000"],
    ]
    shown = cli("runs", "compare", "adapters/one", "adapters/sft").out
    assert ["training", "nll_loss/sft", "1.5000"] in [line.split() for line in shown.splitlines()]


def test_numbers_that_are_not_finite_are_null_in_json(cli: Cli) -> None:
    make_run(Path("adapters/nan"), [row(1, 4.0), {"step": 2, "loss": float("nan")}])
    for call in ("show adapters/nan", "compare adapters/nan adapters/one", "list adapters/nan"):
        shown = cli("runs", *call.split(), "--json").out
        values = json.loads(shown, parse_constant=pytest.fail)
        assert '"loss": null' in shown or values["training"]["loss"][0] is None


def test_clean_asks_and_takes_no_for_an_answer(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    old = Path("adapters/one/checkpoints/step-0000005")
    nobody = cli("runs", "clean")
    assert "there is nobody to ask. Remove it with --yes." in nobody.err and old.exists()
    assert "checkpoints/step-0000005  1.0 kB  an earlier checkpoint" in nobody.out
    assert "adapters/broken is left alone" in nobody.out
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    refused = cli("runs", "clean")
    assert (refused.status, old.exists()) == (1, True)
    assert "Remove 1.0 kB?" in refused.err and "Nothing was removed." in refused.err
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    agreed = cli("runs", "clean")
    assert (agreed.status, old.exists()) == (0, False)
    assert agreed.out.splitlines()[-1] == "Removed 1.0 kB."
    assert cli("runs", "clean", "adapters/one").out == "Nothing to remove.\n"


def test_clean_in_a_script_prints_one_object(cli: Cli) -> None:
    result = cli("runs", "clean", "--yes", "--json")
    facts = json.loads(result.out)
    assert facts["size_bytes"] == 1000
    assert [Path(item["path"]).name for item in facts["removed"]] == ["step-0000005"]


def other_process(monkeypatch: pytest.MonkeyPatch, run: Path, *appended: dict[str, float]) -> None:
    """A run that is going on, and writes a row while the watching waits; then it ends."""
    left = list(appended)
    lock = locked(run, lambda event: None)
    lock.__enter__()

    def wait(seconds: float) -> None:
        if left:
            with (run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(left.pop(0)) + "\n")
        else:
            lock.__exit__(None, None, None)

    monkeypatch.setattr(runs_watch, "time", SimpleNamespace(sleep=wait))


def test_watch_follows_a_run_to_its_end(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Path("adapters/two")
    other_process(monkeypatch, run, row(3, 1.6), row(3, 1.25, held_out=True))
    lines = cli("runs", "watch", run).out.splitlines()
    assert [line.split()[1:5] for line in lines[:3]] == [
        [str(step), "loss", f"{loss:.3f}", "acc"] for step, loss in ((1, 4.0), (2, 2.0), (3, 1.6))
    ]
    assert lines[3].startswith("step     3  held-out: loss 1.250  acc 0.80")
    assert lines[4] == "adapters/two  -  step 3 held-out  loss 1.250  acc 0.80"


def test_ctrl_c_ends_the_watching_alone(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs_watch, "time", SimpleNamespace(sleep=press))
    with locked(Path("adapters/two"), lambda event: None):
        result = cli("runs", "watch", "adapters/two", "--json")
    assert result.status == 0
    assert "the run in adapters/two is left alone" in result.err
    assert json.loads(result.out)["state"] == "running"


def test_on_a_terminal_the_screen_is_drawn_again_when_the_file_has_grown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rich.live import Live

    from orpo_mlx.review.runs import screen
    from orpo_mlx.review.runs.follow import Follower

    drawn: list[tuple[int, int, int]] = []
    render = screen.render_screen

    def watched(rows: Any, width: int, height: int) -> str:
        drawn.append((len(rows), width, height))
        return render(rows, width, height)

    monkeypatch.setattr(screen, "render_screen", watched)
    monkeypatch.setattr(Live, "refresh", lambda self: None)
    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.setenv("LINES", "30")
    run = Path("adapters/two")
    other_process(monkeypatch, run, row(3, 1.6))
    runs_watch._watch_on_screen(run, Follower(run))
    # The trial, the file as it was, the row that came; nothing when the run ended.
    assert drawn == [(0, 40, 10), (2, 90, 27), (3, 90, 27)]


def test_watch_without_plotext_names_its_extra(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from orpo_mlx.review.runs.follow import Follower

    monkeypatch.setitem(sys.modules, "plotext", None)
    with pytest.raises(Exception, match=r"plotext is needed here.*\[watch\]"):
        runs_watch._watch_on_screen(Path("adapters/two"), Follower(Path("adapters/two")))
