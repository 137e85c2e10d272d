"""What the list says of a run is what its files hold; nothing in a folder breaks it."""

import json
from pathlib import Path

import pytest

from orpo_mlx.errors import OrpoError
from orpo_mlx.review.runs.status import find_runs, is_run, size_of, status_of
from orpo_mlx.run_folder.lock import locked
from tests.review.runs.folders import ROWS, make_run, row


def test_a_status_is_what_the_files_hold(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run", ROWS, [10, 20], model="/home/me/models/base", data=["a/b.jsonl:2"]
    )
    status = status_of(run)
    assert (status.base, status.data) == ("base", ["b.jsonl:2"])
    assert (status.step, status.steps, status.state) == (20, 20, "done")
    assert (status.loss, status.accuracy, status.held_out) == (3.125, 0.32, True)
    assert status.size_bytes == 2000 + sum(
        (run / name).stat().st_size for name in ("config.yaml", "metrics.jsonl")
    )


def test_sft_rows_are_data_too(tmp_path: Path) -> None:
    both = make_run(tmp_path / "both", sft_data=["own/task.jsonl"])
    alone = make_run(tmp_path / "alone", data=[], sft_data=["own/task.jsonl"])
    assert status_of(both).data == ["pairs.jsonl", "task.jsonl"]
    assert status_of(alone).data == ["task.jsonl"]


def test_without_held_out_pairs_loss_and_accuracy_are_those_of_training(tmp_path: Path) -> None:
    status = status_of(make_run(tmp_path / "run", [row(1, 4.0), row(2, 2.0)]))
    assert (status.loss, status.accuracy, status.held_out) == (2.0, 0.5, False)


@pytest.mark.parametrize("name", ["running", "done", "stopped", "failed", "interrupted"])
def test_the_state_is_that_of_state_json(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run", ROWS[:5], epochs=2, steps=None)
    state = {"state": name, "reason": "why", "step": 4, "steps": 30, "started": "", "updated": ""}
    (run / "state.json").write_text(json.dumps(state))
    with locked(run, lambda event: None):
        status = status_of(run)
    assert (status.state, status.reason) == (name, "why")
    assert (status.step, status.steps) == (4, 30)
    if name == "running":
        assert status_of(run).state == "interrupted"


def test_what_has_no_state_json_is_judged_by_its_files(tmp_path: Path) -> None:
    assert status_of(make_run(tmp_path / "a", ROWS, [20])).state == "done"
    assert status_of(make_run(tmp_path / "b", ROWS, [10])).state == ""
    assert status_of(make_run(tmp_path / "c", ROWS, [20], epochs=1, steps=None)).state == ""
    with locked(tmp_path / "b", lambda event: None):
        assert status_of(tmp_path / "b").state == "running"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("config.yaml", content) for content in (b"[", b"\xff\x00", b"- 1\n", b"1")),
        *(("adapter_config.json", content) for content in (b"{", b"\xff\x00")),
    ],
)
def test_a_damaged_run_is_called_so(tmp_path: Path, name: str, content: bytes) -> None:
    run = make_run(tmp_path / "run", ROWS)
    (run / name).write_bytes(content)
    status = status_of(run)
    assert status.state == "damaged"
    assert name in status.reason
    assert status.size_bytes > 0


def test_metrics_that_are_cut_or_foreign_are_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [row(1, 4.0)])
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\n{"step": "x"}\n{"step": 2, "loss"')
    assert status_of(run).step == 1


def test_runs_are_those_named_and_those_in_folders_that_are_named(tmp_path: Path) -> None:
    one = make_run(tmp_path / "adapters" / "one")
    two = make_run(tmp_path / "two")
    begun = tmp_path / "adapters" / "begun"
    foreign = tmp_path / "adapters" / "foreign"
    foreign.mkdir()
    (tmp_path / "adapters" / "README.md").touch()
    (tmp_path / "adapters" / ".hidden").mkdir()
    with locked(begun, lambda event: None):  # nothing is written there yet
        assert find_runs([two, tmp_path / "adapters"]) == (
            [two, begun, one],
            [f"{foreign} holds no run."],
        )
        assert status_of(begun).state == "running"
    assert not is_run(begun)
    for absent in (tmp_path / "absent", tmp_path / "adapters" / "README.md"):
        with pytest.raises(OrpoError, match=str(absent)):
            find_runs([absent])


def test_the_size_is_that_of_all_files_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "x").write_bytes(b"x" * 100)
    (tmp_path / "a" / "b" / "y").write_bytes(b"x" * 23)
    (tmp_path / "large").write_bytes(b"x" * 10_000)
    (tmp_path / "a" / "link").symlink_to(tmp_path / "large")
    (tmp_path / "a" / "gone").symlink_to(tmp_path / "absent")
    links = sum((tmp_path / "a" / name).lstat().st_size for name in ("link", "gone"))
    assert size_of(tmp_path / "a") == 123 + links
    assert size_of(tmp_path / "large") == 10_000
