"""What sources keep: base and adapter that are compared differ in nothing but the adapter."""

import datetime as dt
import shutil
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.config.judging import SampleConfig
from orpo_mlx.judging.answers import SampledAnswer
from orpo_mlx.run_folder.folder import CONFIG
from orpo_mlx.sampling.sources import answerers_of
from tests.model.test_adapters import adapted

HOW = "thinking: 'off'\ntemplate_date: '2020-01-02'\ntemplate_args: {style: brief}\n"


@pytest.fixture
def run(llama: Path, tmp_path: Path) -> Path:
    """An adapter whose run had settings of the template."""
    folder = tmp_path / "mine"
    adapted(llama, folder, ["q_proj"])
    (folder / CONFIG).write_text(HOW)
    return folder


@pytest.mark.parametrize("words", [["base", "mine"], ["mine", "base"]])
def test_a_base_is_sampled_by_the_template_settings_of_the_adapter_next_to_it(
    llama: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    one, other = answerers_of(_config(llama, words), [])
    changed = {"name", "adapter", "adapter_sum"}
    assert one.source.model_dump(exclude=changed) == other.source.model_dump(exclude=changed)
    assert one.template == other.template
    assert (one.template.date, one.source.thinking) == (dt.date(2020, 1, 2), False)
    assert one.source.template_args == {"style": "brief"}


def test_a_base_alone_and_options_that_are_given_have_settings_of_their_own(
    llama: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (alone,) = answerers_of(_config(llama, []), [])
    assert (alone.template.date, alone.source.thinking) == (dt.date.today(), True)
    shutil.copytree(run, tmp_path / "other")
    (tmp_path / "other" / CONFIG).write_text("thinking: 'on'\n")
    given = {"thinking": "on", "template_date": "2021-01-01"}
    for answerer in answerers_of(_config(llama, ["base", "mine"], **given), []):
        assert (answerer.template.date, answerer.source.thinking) == (dt.date(2021, 1, 1), True)
    own = [a.source.thinking for a in answerers_of(_config(llama, ["mine", "other"]), [])]
    assert own == [False, True]


def test_a_base_that_has_answered_alone_goes_on_with_its_settings(
    llama: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in ([], ["mine", "base"]):
        config = _config(llama, words)
        source = answerers_of(config, [])[-1].source
        answer = SampledAnswer(
            id="1", prompt="hi", source=source, number=0, seed=0, text="", finish="stop", tokens=1
        )
        assert answerers_of(_config(llama, ["mine", "base"]), [answer])[-1].source == source


def _config(llama: Path, adapter: list[str], **changes: Any) -> SampleConfig:
    values = {"model": str(llama), "prompts": ["none.txt"], "adapter": adapter}
    return SampleConfig.model_validate(values | changes)
