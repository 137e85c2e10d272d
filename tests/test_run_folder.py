"""The run folder: what may be replaced, what is kept of the settings, resuming a run."""

import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.run_folder.folder import check_output, clear_strays, replacing_run
from orpo_mlx.run_folder.settings import (
    RULES,
    check_same_run,
    effective_settings,
    load_run_config,
    rules_of,
    save_run_config,
)
from tests.training.runs import settings


def config(output: Path, **changes: Any) -> TrainConfig:
    return settings(Path("base"), Path("pairs.jsonl"), output, **changes)


def stored(output: Path, **changes: Any) -> TrainConfig:
    """The settings of a run that is in its folder."""
    output.mkdir(parents=True, exist_ok=True)
    written = config(output, **changes)
    save_run_config(written, dt.date(2026, 1, 2), thinking=False, rules=RULES)
    return written


def refusal(function: Any, *arguments: Any) -> str:
    with pytest.raises(OrpoError) as caught:
        function(*arguments)
    return str(caught.value)


def test_a_new_an_empty_and_a_hidden_files_folder_are_free(tmp_path: Path) -> None:
    for name in ("new/below", "empty", "hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / ".DS_Store").touch()
    (tmp_path / "hidden" / ".config.yaml.abcd1234").mkdir()
    for name in ("new/below", "empty", "hidden"):
        check_output(config(tmp_path / name))
    assert not (tmp_path / "new" / "below").exists()


def test_a_run_is_not_replaced_unasked(tmp_path: Path) -> None:
    output = tmp_path / "run"
    stored(output)
    assert refusal(check_output, config(output)) == (
        f"{output} exists. Continue it with --resume, replace it with --overwrite, or name "
        "another folder with --output."
    )
    check_output(config(output, overwrite=True))
    check_output(config(output, resume=True))


def test_a_folder_of_other_things_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    message = refusal(check_output, config(tmp_path, overwrite=True))
    assert message.endswith("holds other files (thesis.tex) and no run. Name another folder.")


def test_a_folder_that_cannot_be_written_is_reported_before(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is a file" in refusal(check_output, config(tmp_path / "file"))
    below = config(tmp_path / "file" / "run")
    assert "cannot be written" in refusal(check_output, below)
    missing = config(tmp_path / "run", resume=True)
    assert "--resume: there is no run at" in refusal(check_output, missing)


def test_clearing_takes_what_runs_write_and_nothing_else(tmp_path: Path) -> None:
    stored(tmp_path)
    (tmp_path / "checkpoints" / "step-0000001").mkdir(parents=True)
    (tmp_path / "notes.md").touch()
    with replacing_run(tmp_path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["notes.md"]


def test_a_run_comes_back_if_its_successor_fails_before_a_checkpoint(tmp_path: Path) -> None:
    stored(tmp_path)
    (tmp_path / "checkpoints" / "step-0000001").mkdir(parents=True)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    with pytest.raises(KeyboardInterrupt), replacing_run(tmp_path):
        (tmp_path / "metrics.jsonl").touch()
        raise KeyboardInterrupt
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_a_successor_with_a_checkpoint_stays(tmp_path: Path) -> None:
    stored(tmp_path)
    with pytest.raises(OrpoError), replacing_run(tmp_path):
        (tmp_path / "checkpoints" / "step-0000002").mkdir(parents=True)
        raise OrpoError("later")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["checkpoints", "step-0000002"]


def test_a_run_that_was_put_aside_comes_back_after_a_kill(tmp_path: Path) -> None:
    stored(tmp_path / ".replaced")
    (tmp_path / "config.yaml").write_text("model: other")
    clear_strays(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]
    assert "other" not in (tmp_path / "config.yaml").read_text()


def test_strays_of_a_killed_run_go(tmp_path: Path) -> None:
    names = (".adapters.safetensors.x1", ".tokenizer.x2", ".model.x3", "checkpoints/.step-1.x4")
    for name in names:
        (tmp_path / name / "part").mkdir(parents=True)
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "checkpoints" / "step-0000001").mkdir()
    clear_strays(tmp_path)
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")}
    assert left == {".DS_Store", "checkpoints", "checkpoints/step-0000001"}


def test_settings_come_back_as_they_were_used(tmp_path: Path) -> None:
    written = stored(tmp_path, template_args={"tone": "kind"}, eval_pairs="all", thinking="auto")
    values = load_run_config(tmp_path)
    assert (values["thinking"], values["template_date"]) == ("off", "2026-01-02")
    again = check_same_run(config(tmp_path, resume=True))
    assert again.resume
    same = again.model_copy(update={"thinking": "auto", "template_date": written.template_date})
    assert effective_settings(same) == effective_settings(written)


def test_the_rules_are_written_down_and_are_not_a_setting(tmp_path: Path) -> None:
    stored(tmp_path)
    values = load_run_config(tmp_path)
    assert rules_of(values) == values["rules"] == 4
    assert rules_of({}) == 1
    again = TrainConfig.model_validate(values | {"rules": 1})
    assert not hasattr(again, "rules")
    assert "rules" not in effective_settings(again)


@pytest.mark.parametrize("rules", [0, 5, "2", None, True])
def test_rules_that_nobody_knows_are_refused(rules: Any) -> None:
    assert f"rules: {rules} is not known" in refusal(rules_of, {"rules": rules})


def test_a_resumed_run_takes_its_own_settings(tmp_path: Path) -> None:
    stored(tmp_path, beta=0.3, rank=8)
    given = {"model": "base", "data": ["pairs.jsonl"], "output": tmp_path, "resume": True}
    changes = {"save_every": 9, "keep_checkpoints": "all"}
    again = check_same_run(TrainConfig.model_validate(given | changes))
    assert (again.beta, again.rank, again.save_every) == (0.3, 8, 9)
    assert again.keep_checkpoints is None
    again = check_same_run(TrainConfig.model_validate(given | {"thinking": "auto"}))
    assert again.thinking == "off"
    changed = TrainConfig.model_validate(given | {"beta": 0.2, "rank": 8, "seed": 1})
    assert refusal(check_same_run, changed) == (
        "--resume goes on with the run's own settings:\n"
        "  beta: was 0.3, now 0.2\n"
        "  seed: was 0, now 1\n"
        "Leave them out."
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged: it must hold 'key: value' lines."),
        (b"rank: [", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"model: m\ndata: [d]\noutput: o\nrank: -3\nrnak: 1\n", "is damaged:\n  rank: "),
    ],
)
def test_a_damaged_config_is_one_clear_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    assert message in refusal(check_same_run, config(tmp_path, resume=True))


def test_a_folder_without_a_config_holds_no_run(tmp_path: Path) -> None:
    message = refusal(check_same_run, config(tmp_path, resume=True))
    assert message == f"{tmp_path} holds no run: there is no config.yaml."


def test_a_file_is_not_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refusal(check_output, config(tmp_path / "file")) == (
        f"--output {tmp_path / 'file'} is a file. Name a folder."
    )


def test_sources_hold_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "pairs.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    data = ["acme:2", "acme/pairs.jsonl:0.5", "acme/*.jsonl", "acme/p*.jsonl:3", "user/set:2"]
    given = config(tmp_path / "run").model_copy(update={"data": data})
    assert effective_settings(given)["data"] == [
        f"{tmp_path}/acme:2",
        f"{tmp_path}/acme/pairs.jsonl:0.5",
        f"{tmp_path}/acme/*.jsonl",
        f"{tmp_path}/acme/p*.jsonl:3",
        "user/set:2",
    ]
