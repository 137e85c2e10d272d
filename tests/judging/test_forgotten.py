"""What was forgotten, next to a verdict: measured once, or why it was not."""

import json
import shutil
from pathlib import Path

import pytest

from orpo_mlx.judging.answers import AnswerSource, adapter_sum
from orpo_mlx.judging.forgotten import (
    ForgottenByModels,
    GeneralText,
    load_general_text,
    measure_forgotten,
)
from orpo_mlx.review.forgetting.measure import Forgotten
from tests.judging.sessions import source
from tests.review.forgetting.adapters import PARAGRAPHS, save_noise, save_two

TEXT = GeneralText("four paragraphs", PARAGRAPHS)


def with_adapter(base: Path, adapter: Path) -> AnswerSource:
    return source(
        adapter.name, model=str(base), adapter=str(adapter), adapter_sum=adapter_sum(adapter)
    )


def measured(folder: Path, *models: AnswerSource, text: GeneralText = TEXT) -> ForgottenByModels:
    return measure_forgotten(folder, models, [m.name for m in models], text, lambda event: None)


def test_an_adapter_is_compared_with_its_base_and_the_sentence_warns(tmp_path: Path) -> None:
    base, adapter = save_two(tmp_path, 1.0)
    result = measured(tmp_path, with_adapter(base, adapter), source("base", model=str(base)))
    one = result.models["adapter"]
    assert list(result.models) == ["adapter"]
    assert one.low > 0.05
    assert result.sentences == [
        f"Warning: On four paragraphs ({one.tokens} tokens) the loss of adapter is "
        f"{one.change:.3f} nats a token above its base's (+{one.low:.3f} to +{one.high:.3f}): more "
        "than 0.05 was forgotten. Train with a lower learning rate or fewer steps."
    ]
    assert result.facts["models"]["adapter"]["is_large"]


def test_no_change_is_not_warned_of() -> None:
    one = Forgotten(60, 3900, 2.5, 2.49, -0.02, 0.001)
    assert ForgottenByModels("60 paragraphs", {"the adapter": one}).sentences == [
        "On 60 paragraphs (3,900 tokens) the loss of the adapter is 0.010 nats a token below its "
        "base's (-0.020 to +0.001)."
    ]


@pytest.mark.touchy
def test_two_adapters_of_unlike_bases_are_each_compared_with_their_own(tmp_path: Path) -> None:
    base, adapter = save_two(tmp_path, 1.0)
    second = tmp_path / "second"
    second.mkdir()
    other_base, other = save_two(second, 0.0)
    moved = with_adapter(base, adapter)
    same = with_adapter(other_base, other.rename(second / "unchanged"))
    result = measured(tmp_path, moved, same)
    assert result.models["adapter"].change > 1
    assert result.models["unchanged"].change == pytest.approx(0, abs=1e-6)  # float32


def test_what_was_measured_is_not_computed_again(tmp_path: Path) -> None:
    base, adapter = save_two(tmp_path, 1.0)
    models = with_adapter(base, adapter), source("base", model=str(base))
    first = measured(tmp_path, *models)
    shutil.rmtree(base)  # nothing could be computed
    shutil.rmtree(adapter)
    assert measured(tmp_path, *models) == first
    renamed = TEXT._replace(paragraphs=[*PARAGRAPHS, "another one"])
    assert measured(tmp_path, *models, text=renamed).models == {}


@pytest.mark.touchy
def test_a_damaged_file_is_measured_again(tmp_path: Path) -> None:
    base, adapter = save_two(tmp_path, 1.0)
    first = measured(tmp_path, with_adapter(base, adapter))
    of_this_text = json.dumps({"text_sum": TEXT.sum, "models": []})
    for content in ("{", "[]", '{"text_sum": 3}', of_this_text):
        (tmp_path / "forgotten.json").write_text(content)
        again = measured(tmp_path, with_adapter(base, adapter)).models["adapter"]
        assert again == pytest.approx(first.models["adapter"], rel=1e-5)  # float32


@pytest.mark.parametrize("change", ["gone", "another", "base gone", "none"])
def test_why_nothing_was_measured_is_named(tmp_path: Path, change: str) -> None:
    base, adapter = save_two(tmp_path, 1.0)
    model = with_adapter(base, adapter)
    expected = f"{base} "
    if change == "gone":
        shutil.rmtree(adapter)
        expected = f"{adapter}/adapters.safetensors: cannot be read (No such file or directory)"
    elif change == "another":
        shutil.rmtree(adapter)
        save_noise(base, adapter, 0.5)
        expected = f"the adapter in {adapter} is another one than that which answered"
    elif change == "base gone":
        shutil.rmtree(base)
        expected = str(base)
    else:
        model = source("base", model=str(base))
        expected = "neither of the two has an adapter"
    result = measured(tmp_path, model)
    assert result.models == {}
    assert expected in result.why_not
    assert result.sentences == [f"What was forgotten was not measured: {result.why_not}."]
    assert not (tmp_path / "forgotten.json").exists()


def test_a_text_is_called_by_its_file_and_the_bundled_one_by_its_size(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("one\n\ntwo")
    assert load_general_text(own) == (str(own), ["one", "two"])
    assert load_general_text(None).name == "60 paragraphs of general text"
