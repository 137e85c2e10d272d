"""Rows of every public set, as they are, through a step of training and an evaluation."""

import math
from pathlib import Path

import pytest

from orpo_mlx.config.train import EvaluateConfig
from orpo_mlx.events import Event, RowCounts
from orpo_mlx.training.evaluate import evaluate
from orpo_mlx.training.loop import train
from tests import tiny
from tests.data.pairs.test_public_sets import FIXTURES, SETS
from tests.training.runs import notices, rows, settings

# ChatML with all that a row can hold: tools, calls and reasoning.
TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\n' + tools|tojson + '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['reasoning_content'] %}{{ '<think>' + message['reasoning_content'] + '</think>'"
    " }}{% endif %}{{ message['content'] }}"
    "{% if message['tool_calls'] %}{{ message['tool_calls']|tojson }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama whose template renders everything."""
    return tiny.save_base(tmp_path_factory.mktemp("base") / "llama", template=TEMPLATE)


@pytest.mark.parametrize("name", SETS)
def test_a_public_set_is_trained_on_and_evaluated(base: Path, name: str, tmp_path: Path) -> None:
    expected, file, output = SETS[name], FIXTURES / f"{name}.jsonl", tmp_path / "run"
    events: list[Event] = []
    short = {"steps": 1, "batch_size": 1, "micro_batch_size": 1, "max_seq_length": 512}
    train(settings(base, file, output, **short), [events.append])
    (step,) = rows(output)
    assert math.isfinite(step["loss"])
    assert sum(text.endswith(f"read as: {expected.sentence}.") for text in notices(events)) == 1
    counts = [row for event in events if isinstance(event, RowCounts) for row in event.rows]
    left_out = {why: n for n, why in counts if why.startswith("row left out: ")}
    assert left_out == {f"row left out: {why}": n for why, n in expected.drops.items()}
    config = EvaluateConfig.model_validate(
        {"model": str(base), "data": [str(file)], "adapter": output}
    )
    base_values, adapter_values = evaluate(config)
    for values in (base_values, adapter_values):
        assert values is not None
        assert [pair.location for pair in values.pairs] == [
            f"{file}:{p.location}" for p in expected.pairs
        ]
