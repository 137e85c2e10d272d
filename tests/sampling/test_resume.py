"""A file of answers that is there: gone on with, added to, refused or replaced."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.config.judging import SampleConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event, Progress
from orpo_mlx.judging.answers import load_answers
from orpo_mlx.sampling import sample as whole
from orpo_mlx.sampling.sample import sample
from tests.sampling.samples import assert_same_answers, config_of
from tests.sampling.talkers import rows_of

pytestmark = [pytest.mark.touchy, pytest.mark.usefixtures("eager")]


def interrupt_after(answers: int) -> Any:
    def callback(event: Event) -> None:
        if (
            isinstance(event, Progress)
            and event.stage.startswith("Answers")
            and (event.done == answers)
        ):
            raise KeyboardInterrupt

    return callback


def test_a_sampling_that_was_stopped_goes_on_to_the_same_file(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    config = config_of(base, tmp_path, adapter=["base", str(adapter)], batch_size=3)
    sample(config)
    broken = config.model_copy(update={"output": tmp_path / "broken.jsonl", "resume": True})
    for answers in (7, 3, 5):
        with pytest.raises(KeyboardInterrupt):
            sample(broken, interrupt_after(answers))
    kept = load_answers(broken.output)
    assert 0 < len(kept) < 24
    with broken.output.open("a") as file:  # as after a kill
        file.write('{"id": "cut off')
    sampled = sample(broken)
    assert_same_answers(broken.output, config.output)
    assert sum(len(source.answers) for source in sampled.sources) == 24


def test_a_finished_file_is_gone_on_with_without_a_model(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(base, tmp_path)
    sample(config)
    before = config.output.read_bytes()
    monkeypatch.setattr(whole, "open_base", None)
    # on another day, whose date is not named
    sample(config.model_copy(update={"resume": True, "template_date": None}))
    assert config.output.read_bytes() == before


def test_more_answers_prompts_and_adapters_are_added(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    # Given: else a base next to an adapter takes the adapter's.
    config = config_of(base, tmp_path, answers=2, limit=2, thinking="off")
    sample(config)
    more = {"answers": 4, "limit": None, "adapter": ["base", str(adapter)]}
    sample(config.model_copy(update=more | {"resume": True}))
    at_once = config.model_copy(update=more | {"output": tmp_path / "at_once.jsonl"})
    sample(at_once)
    assert_same_answers(config.output, at_once.output)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "--seed was 0, is 1"),
        ({"temperature": 1.0}, "--temperature was 0.8, is 1.0"),
        ({"max_tokens": 17}, "--max-tokens was 16, is 17"),
        ({"answers": 2}, "-n was 4, is 2"),
        ({"thinking": "off"}, "--thinking was True, is False"),
        ({"template_date": "2026-01-03"}, "--template-date was 2026-01-02, is 2026-01-03"),
        ({"template_args": {"a": 1}}, "--template-args was not given, is {'a': 1}"),
        ({"eos_token": "<|im_end|>"}, "--eos-token was not given, is <|im_end|>"),
        ({"limit": 2}, "answers to 1 prompts that --prompts does not have"),
        ({"adapter": []}, "answers of mine: add --adapter"),
    ],
)
def test_other_settings_are_refused_and_named(
    base: Path, adapter: Path, answered: Path, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    config = config_of(base, tmp_path, adapter=["base", str(adapter)])
    shutil.copy(answered, config.output)
    if "adapter" in changes:
        row = load_answers(answered)[0]
        mine = row.source.model_copy(update={"name": "mine"})
        whole.append_answers(config.output, [row.model_copy(update={"source": mine})])
    before = config.output.read_bytes()
    values = config.model_dump() | changes | {"resume": True}
    with pytest.raises(OrpoError) as error:
        sample(SampleConfig.model_validate(values))
    assert named in str(error.value)
    assert len(str(error.value).splitlines()) == 2
    assert config.output.read_bytes() == before


def test_another_adapter_in_the_same_folder_is_refused(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(adapter, tmp_path / "copy")
    config = config_of(base, tmp_path, adapter=[str(copy)])
    sample(config)
    with (copy / "adapters.safetensors").open("ab") as file:
        file.write(b" ")
    with pytest.raises(OrpoError, match=r"the adapter's weights was \w{12}\.\.\., is \w{12}"):
        sample(config.model_copy(update={"resume": True}))


def test_nothing_is_replaced_unasked_nor_before_there_is_something_new(
    base: Path, tmp_path: Path
) -> None:
    config = config_of(base, tmp_path)
    config.output.write_text("mine\n")
    with pytest.raises(OrpoError, match=r"answers.jsonl exists\. Go on with it with --resume"):
        sample(config)
    for changes in (
        {"model": str(tmp_path / "absent")},
        {"prompts": [str(tmp_path / "absent.txt")]},
        {"prompts": [str(config.output)]},
    ):
        with pytest.raises(OrpoError):
            sample(config.model_copy(update={"overwrite": True, **changes}))
    assert config.output.read_text() == "mine\n"
    sample(config.model_copy(update={"overwrite": True}))
    assert len(rows_of(config.output)) == 12
