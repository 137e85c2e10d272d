"""A run whose last checkpoints were damaged ends as one whose were not; which ones a run keeps."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event
from orpo_mlx.run_folder.checksums import SUMS
from orpo_mlx.training.loop import train
from tests.run_folder.saved import DAMAGES, FILES, cut, flip
from tests.training.runs import LONG, notices, rows, settings, stop_after, tensors

pytestmark = pytest.mark.touchy


def names(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").iterdir())


def test_a_run_goes_on_bit_for_bit_from_the_last_whole_checkpoint(
    llama: Path, data: Path, tmp_path: Path, uninterrupted: tuple[Path, list[Event]]
) -> None:
    output, whole = tmp_path / "run", uninterrupted[0]
    long = {**LONG, "keep_checkpoints": 4}
    train(settings(llama, data, output, **long), [stop_after(17)])
    assert names(output) == [f"step-{step:07}" for step in (10, 14, 15, 17)]
    flip(output / "checkpoints" / "step-0000017" / "optimizer.safetensors")
    cut(output / "checkpoints" / "step-0000015" / "weights.safetensors")
    (output / "checkpoints" / "step-0000014" / "state.json").unlink()
    events: list[Event] = []
    # Stopped once more, before it has come as far again.
    train(settings(llama, data, output, **long, resume=True), [events.append, stop_after(12)])
    warnings = notices(events, warning=True)
    assert [text.split(":")[0] for text in warnings] == [
        "checkpoints/step-0000017 is damaged (optimizer.safetensors",
        "checkpoints/step-0000015 is damaged (weights.safetensors",
        "checkpoints/step-0000014 is damaged (state.json",
    ]
    assert all("going on from step-0000010" in text for text in warnings)
    assert rows(output) == [row for row in rows(whole) if row["step"] <= 12]
    again: list[Event] = []
    train(settings(llama, data, output, **long, resume=True), [again.append])
    assert notices(again, warning=True) == []
    assert rows(output) == rows(whole)
    assert names(output) == [f"step-{step:07}" for step in (12, 14, 15, 20)]
    resumed, expected = tensors(output), tensors(whole)
    same = [name for name in expected if "0000012" not in name and "0000010" not in name]
    assert {name: resumed[name] for name in same} == {name: expected[name] for name in same}


@pytest.fixture(scope="module")
def stopped(llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after its second checkpoint. Do not write there."""
    output = tmp_path_factory.mktemp("runs") / "stopped"
    train(settings(llama, data, output, **LONG), [stop_after(10)])
    return output


@pytest.mark.soak
@pytest.mark.parametrize("name", [*FILES, SUMS])
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_of_every_file_costs_steps_and_nothing_else(
    llama: Path,
    data: Path,
    tmp_path: Path,
    stopped: Path,
    uninterrupted: tuple[Path, list[Event]],
    name: str,
    damage: Any,
) -> None:
    output = tmp_path / "run"
    shutil.copytree(stopped, output)
    damage(output / "checkpoints" / "step-0000010" / name)
    events: list[Event] = []
    train(settings(llama, data, output, **LONG, resume=True), [events.append])
    [warning] = notices(events, warning=True)
    assert warning.startswith(f"checkpoints/step-0000010 is damaged ({name}: ")
    assert rows(output) == rows(uninterrupted[0])
    assert tensors(output) == tensors(uninterrupted[0])


def test_a_run_without_a_whole_checkpoint_is_refused_and_left_as_it_is(
    llama: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    train(settings(llama, data, output, save_every=2))
    for name in names(output):
        flip(output / "checkpoints" / name / "adapters.safetensors")
    before = tensors(output), rows(output)
    with pytest.raises(OrpoError, match=r"is damaged:\n  step-0000004: adapters.safetensors: its"):
        train(settings(llama, data, output, resume=True))
    assert (tensors(output), rows(output)) == before


@pytest.mark.parametrize(("keep", "left"), [(2, [3, 4]), (1, [4]), ("all", [1, 2, 3, 4])])
def test_a_run_keeps_its_last_checkpoints(
    llama: Path, data: Path, tmp_path: Path, keep: Any, left: list[int]
) -> None:
    train(settings(llama, data, tmp_path / "run", save_every=1, keep_checkpoints=keep))
    assert names(tmp_path / "run") == [f"step-{step:07d}" for step in left]


def test_nothing_is_removed_before_the_new_checkpoint_is_whole(
    llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(folder: Path) -> None:
        if "step-0000003" in str(folder):
            raise OSError(5, "Input/output error")

    output = tmp_path / "run"
    monkeypatch.setattr("orpo_mlx.training.checkpoint.save_checksums", failing)
    with pytest.raises(OrpoError, match="step-0000003 cannot be written: Input/output error"):
        train(settings(llama, data, output, save_every=1, keep_checkpoints=2))
    assert names(output) == ["step-0000001", "step-0000002"]


def test_a_run_of_a_version_without_the_option_keeps_all_it_has(
    llama: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    every = {"save_every": 1, "keep_checkpoints": "all"}
    train(settings(llama, data, output, **every, steps=5), [stop_after(4)])
    file = output / "config.yaml"
    values = yaml.safe_load(file.read_text())
    assert values.pop("keep_checkpoints", 0) is None
    file.write_text(yaml.safe_dump(values))
    given = {"model": str(llama), "data": [str(data)], "output": output, "resume": True}
    train(TrainConfig.model_validate(given))
    assert len(names(output)) == 5


def test_a_checkpoint_that_cannot_be_removed_does_not_end_the_run(
    llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: Any) -> None:
        raise OrpoError("checkpoints/step-0000001 cannot be removed: Permission denied.")

    monkeypatch.setattr("orpo_mlx.training.run.prune_checkpoints", refused)
    events: list[Event] = []
    train(settings(llama, data, tmp_path / "run", save_every=2), [events.append])
    text = "checkpoints/step-0000001 cannot be removed: Permission denied."
    assert notices(events, warning=True) == [text, text]
