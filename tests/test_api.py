from pathlib import Path

import pytest

import orpo_mlx
from tests import tiny
from tests.loaded import assert_loads_none


@pytest.mark.touchy
def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = {"mlx", "mlx_lm", "numpy", "transformers", "pyarrow", "pydantic", "click", "rich"}
    names = {"events", "train", "evaluate", "load_pairs", "TrainConfig", "EvaluateConfig"}
    code = f"import orpo_mlx; assert {names} <= set(dir(orpo_mlx))"
    assert_loads_none(code, heavy)


@pytest.mark.parametrize("name", [n for n in dir(orpo_mlx) if not n.startswith("_")])
def test_every_name_of_the_api_is_there(name: str) -> None:
    assert getattr(orpo_mlx, name).__name__.removeprefix("orpo_mlx.") == name


@pytest.mark.touchy
def test_events_are_public_and_load_nothing_heavy() -> None:
    code = "import orpo_mlx; orpo_mlx.events.StepDone(1, {})"
    assert_loads_none(code, {"mlx", "numpy", "pydantic"})


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'orpo_mlx' has no attribute 'tune'"):
        _ = orpo_mlx.tune  # type: ignore[attr-defined]


def test_pairs_are_read_from_files_and_folders(pairs_file: Path) -> None:
    pairs = orpo_mlx.load_pairs(pairs_file)
    assert len(pairs) == 16
    assert pairs[0].prompt == tiny.toy_pair(0)["prompt"]
    assert orpo_mlx.load_pairs([str(pairs_file.rename(pairs_file.with_name("train.jsonl")).parent)])


def test_a_script_trains_with_callbacks_and_evaluates(
    llama: Path, pairs_file: Path, tmp_path: Path
) -> None:
    events: list[object] = []
    config = orpo_mlx.TrainConfig(
        model=llama,
        data=pairs_file,
        valid_data=[pairs_file],
        output=tmp_path / "run",
        steps=2,
        batch_size=4,
        rank=2,
    )
    result = orpo_mlx.train(config, callbacks=[events.append])
    assert (result.output, result.step, result.stopped) == (tmp_path / "run", 2, False)
    kinds = [type(event).__name__ for event in events]
    assert kinds.count("StepDone") == 2 and kinds[-1] == "Finished"

    comparison = orpo_mlx.evaluate(
        orpo_mlx.EvaluateConfig(model=llama, adapter=result.output, data=pairs_file)
    )
    assert comparison.adapter is not None
    measured = comparison.adapter.means()
    # float32; the same pairs in micro-batches of another size
    assert measured["loss"] == pytest.approx(result.metrics["eval_loss"], abs=1e-5)


def test_a_user_error_is_an_orpo_error(pairs_file: Path, tmp_path: Path) -> None:
    with pytest.raises(orpo_mlx.OrpoError, match="none"):
        orpo_mlx.load_pairs("none.jsonl")
