"""A model's own code runs where this call gave leave, and nowhere else."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import orpo_mlx
from orpo_mlx.cli.main import run
from orpo_mlx.errors import OrpoError
from orpo_mlx.run_folder.folder import CONFIG
from orpo_mlx.run_folder.settings import load_run_config
from orpo_mlx.training.loop import train
from tests import tiny
from tests.training.runs import settings, stop_after

ADVICE = "give --trust-remote-code"


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base whose own code leaves a mark when it runs."""
    folder = tiny.save_base(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_file": "own.py"}))
    (folder / "own.py").write_text(
        "import os\nfrom pathlib import Path\nPath(os.environ['MARK']).touch()\n"
        "from mlx_lm.models.llama import Model, ModelArgs\n"
    )
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    return folder


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "mark"


def with_leave(output: Path) -> None:
    """What version 0.1 wrote, or somebody who wants his code to run."""
    stored = yaml.safe_load((output / CONFIG).read_text())
    (output / CONFIG).write_text(yaml.safe_dump(stored | {"trust_remote_code": True}))


def stopped_run(base: Path, pairs: Path, output: Path) -> Path:
    config = settings(base, pairs, output, trust_remote_code=True, save_every=1)
    train(config, [stop_after(2)])
    return output


def test_leave_is_not_written(base: Path, pairs_file: Path, tmp_path: Path) -> None:
    output = stopped_run(base, pairs_file, tmp_path / "run")
    assert "trust_remote_code" not in (output / CONFIG).read_text()


@pytest.mark.parametrize("written", [False, True])
def test_a_run_is_resumed_with_leave_of_this_call_alone(
    base: Path, mark: Path, pairs_file: Path, tmp_path: Path, written: bool
) -> None:
    output = stopped_run(base, pairs_file, tmp_path / "run")
    if written:
        with_leave(output)
    assert "trust_remote_code" not in load_run_config(output)
    mark.unlink()
    with pytest.raises(OrpoError, match=ADVICE):
        train(settings(base, pairs_file, output, resume=True))
    assert run(["train", "--resume", "--output", str(output), "--quiet"]) == 1
    assert not mark.exists()
    assert run(["train", "--resume", "--trust-remote-code", "--output", str(output)]) == 0
    assert mark.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--resume", "--output", "RUN"],
        ["generate", "--adapter", "RUN", "--model", "BASE", "--prompt", "hi"],
        ["evaluate", "--adapter", "RUN", "--model", "BASE", "--data", "PAIRS"],
        ["fuse", "--adapter", "RUN", "--output", "OUT"],
        ["export", "RUN", "--to", "gguf", "--fused", "--output", "OUT"],
        ["push", "RUN", "--repo", "a/b", "--dry-run"],
        ["train", "--adapter", "RUN", "--model", "BASE", "--data", "PAIRS", "--output", "OUT"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_no_command_takes_leave_from_a_folder(
    base: Path,
    mark: Path,
    pairs_file: Path,
    tmp_path: Path,
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = stopped_run(base, pairs_file, tmp_path / "run")
    with_leave(output)
    mark.unlink()
    names = {"RUN": output, "BASE": base, "PAIRS": pairs_file, "OUT": tmp_path / "out"}
    run([str(names.get(word, word)) for word in arguments])
    assert not mark.exists(), capsys.readouterr().err


def test_the_checkpoint_is_looked_for_before_anything_is_loaded(
    base: Path, mark: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `pull` leaves a run: no checkpoints."""
    output = stopped_run(base, pairs_file, tmp_path / "run")
    for folder in (output / "checkpoints").iterdir():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    mark.unlink()

    def load(*arguments: Any) -> None:
        raise AssertionError("a base was loaded")

    monkeypatch.setattr("orpo_mlx.loading.open_base", load)
    with pytest.raises(OrpoError, match="holds no checkpoint yet"):
        train(settings(base, pairs_file, output, resume=True, trust_remote_code=True))
    assert not mark.exists()


@pytest.mark.parametrize("value", ["true", "yes", "1", "'true'", "[true]"])
def test_a_file_of_settings_cannot_give_leave(
    base: Path,
    mark: Path,
    pairs_file: Path,
    tmp_path: Path,
    value: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(f"trust_remote_code: {value}\nmodel: {base}\ndata: {pairs_file}\n")
    assert run(["train", "--config", str(file), "--output", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"Error: --config {file}: trust_remote_code: ")
    assert "by the flag --trust-remote-code" in message
    assert not mark.exists()


@pytest.mark.parametrize("written", ["trust_remote_code: false", "trust-remote-code: null"])
def test_a_file_that_gives_no_leave_is_read(llama: Path, tmp_path: Path, written: str) -> None:
    file = tmp_path / "settings.yaml"
    pairs = tiny.save_pairs(tmp_path / "pairs.jsonl", 4)
    file.write_text(f"{written}\nmodel: {llama}\ndata: {pairs}\nsteps: 1\n")
    assert run(["train", "--config", str(file), "--output", str(tmp_path / "out")]) == 0


def test_the_api_gives_leave_by_its_argument(
    base: Path, mark: Path, pairs_file: Path, tmp_path: Path
) -> None:
    given = {"model": base, "data": pairs_file, "output": tmp_path / "run", "steps": 1}
    with pytest.raises(OrpoError, match=ADVICE):
        orpo_mlx.train(orpo_mlx.TrainConfig(**given))
    assert not mark.exists()
    orpo_mlx.train(orpo_mlx.TrainConfig(**given, trust_remote_code=True))
    assert mark.exists()
