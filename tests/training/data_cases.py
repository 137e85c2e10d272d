"""What each option that says how pairs are read changes, for tests/training/test_options.py."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from orpo_mlx.data.tokens import pipeline
from orpo_mlx.errors import OrpoError
from orpo_mlx.training.loop import train
from tests import tiny
from tests.training.runs import rows, settings

Patch = pytest.MonkeyPatch
Row = dict[str, Any]


def answers(key: str) -> list[Row]:
    """Rows of three scored answers, next to a pair of their own."""
    rows = []
    for number in range(8):
        pair = tiny.toy_pair(number)
        texts = [pair["chosen"], pair["rejected"], "I am not sure"]
        scored = [{"response": t, key: n + 1.0} for n, t in enumerate(texts)]
        rows.append({"prompt": pair["prompt"], "completions": scored})
    return rows


def seen(source: str, **changes: Any) -> Any:
    """The numbers of two steps on a source, or the first line of the error."""
    output = Path("runs") / str(len(list(Path().glob("runs/*"))))
    model = Path("base") if Path("base").exists() else tiny.save_base(Path("base"))
    try:
        train(settings(model, Path(source), output, steps=2, micro_batch_size=1, **changes))
    except OrpoError as error:
        return str(error).split("\n")[0]
    return rows(output)


def differ(rows: list[Row] | None, **changes: Any) -> None:
    """An option changes the numbers of a run on these rows, or on the file that is there."""
    if rows is not None:
        Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    first, second = seen("rows.jsonl"), seen("rows.jsonl", **changes)
    assert isinstance(second, list), second
    assert first != second


def case_format(patch: Patch) -> None:
    both = [row | tiny.toy_pair(n + 20) for n, row in enumerate(answers("score"))]
    differ(both, format="ranked")


def case_columns(patch: Patch) -> None:
    differ(
        [tiny.toy_pair(n) | {"better": "thank you"} for n in range(8)], columns={"chosen": "better"}
    )


def case_higher_is_better(patch: Patch) -> None:
    differ(answers("rank"), higher_is_better=True)


def case_lower_is_better(patch: Patch) -> None:
    differ(answers("score"), lower_is_better=True)


def case_min_margin(patch: Patch) -> None:
    differ(answers("score"), min_margin=1.0)


def case_bad_rows(patch: Patch) -> None:
    differ([*map(tiny.toy_pair, range(8)), {"prompt": "alone"}], bad_rows="drop")


def case_valid_fraction(patch: Patch) -> None:
    differ([tiny.toy_pair(n) for n in range(16)], valid_fraction=0.25)


def case_split(patch: Patch) -> None:
    parts = {"train": range(8), "more": range(40, 48)}
    whole = {
        name: Dataset.from_list([tiny.toy_pair(n) for n in part]) for name, part in parts.items()
    }
    DatasetDict(whole).save_to_disk("saved")
    first, second = seen("saved"), seen("saved", split="more")
    assert isinstance(second, list), second
    assert first != second


def asked_of_the_hub(patch: Patch, **changes: Any) -> tuple[Any, ...]:
    asked = []

    def builder(name: str, subset: str | None, *, revision: str | None) -> Any:
        asked.append((name, subset, revision))
        raise ConnectionError("offline")

    patch.setattr("datasets.load_dataset_builder", builder)
    assert "the Hub cannot be reached" in seen("some/pairs", **changes)
    return asked[0]


def case_subset(patch: Patch) -> None:
    assert asked_of_the_hub(patch, subset="german") == ("some/pairs", "german", None)


def case_data_revision(patch: Patch) -> None:
    assert asked_of_the_hub(patch, data_revision="v2") == ("some/pairs", None, "v2")


def case_num_proc(patch: Patch) -> None:
    started, work = [], pipeline.map_in_order

    def watched(*arguments: Any) -> Any:
        started.append(arguments[-1])
        return work(*arguments)

    patch.setattr(pipeline, "map_in_order", watched)
    tiny.save_pairs(Path("rows.jsonl"), 8)
    first = seen("rows.jsonl")
    tiny.save_pairs(Path("other.jsonl"), 8)
    assert seen("other.jsonl", num_proc=2) == first
    assert started == [2]


CASES: dict[str, Callable[[Patch], None]] = {
    "format": case_format,
    "columns": case_columns,
    "split": case_split,
    "subset": case_subset,
    "data_revision": case_data_revision,
    "higher_is_better": case_higher_is_better,
    "lower_is_better": case_lower_is_better,
    "min_margin": case_min_margin,
    "bad_rows": case_bad_rows,
    "num_proc": case_num_proc,
    "valid_fraction": case_valid_fraction,
}
