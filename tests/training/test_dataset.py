"""The pairs of a run: weights, held-out pairs, reasoning that appears late, the second start."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orpo_mlx import loading
from orpo_mlx.data.pairs.load import load_pairs
from orpo_mlx.data.pairs.split import prompt_hash
from orpo_mlx.data.tokens import pipeline
from orpo_mlx.data.tokens.store import StoredPairs
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event
from orpo_mlx.training.dataset import RunPairs, find_run_sources, load_run_pairs
from orpo_mlx.training.loop import train
from tests import tiny
from tests.training.runs import notices, settings


def loaded(llama: Path, data: list[str], events: list[Event], **changes: Any) -> RunPairs:
    config = settings(llama, Path(), Path("run"), **{"data": data, **changes})
    sources = find_run_sources(config, events.append)
    base = loading.open_tokenizer(config, config.model)
    return load_run_pairs(config, sources, base, loading.template_of(config), events.append)


def locations(pairs: StoredPairs) -> list[str]:
    return [pair.location.rpartition("/")[2] for pair in pairs]


def test_a_weight_is_how_often_a_pair_comes_in_an_epoch(llama: Path, tmp_path: Path) -> None:
    a = tiny.save_pairs(tmp_path / "a.jsonl", 10)
    b = tiny.save_pairs(tmp_path / "b.jsonl", 10, start=20)
    loaded_pairs = loaded(llama, [f"{a}:2.5", f"{b}:0.5"], [])
    counts = {
        location: locations(loaded_pairs.train).count(location)
        for location in set(locations(loaded_pairs.train))
    }
    assert sum(n for location, n in counts.items() if location.startswith("a")) == 25
    assert {n for location, n in counts.items() if location.startswith("a")} == {2, 3}
    assert sum(n for location, n in counts.items() if location.startswith("b")) == 5
    again = loaded(llama, [f"{a}:2.5", f"{b}:0.5"], [])
    assert locations(again.train) == locations(loaded_pairs.train)
    other = loaded(llama, [f"{a}:2.5", f"{b}:0.5"], [], seed=1)
    assert locations(other.train) != locations(loaded_pairs.train)


def test_no_prompt_is_on_both_sides_of_the_split(llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    rows = [tiny.toy_pair(n) | {"prompt": f"help {n % 20}"} for n in range(60)]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    events: list[Event] = []
    loaded_pairs = loaded(llama, [f"{file}:2"], events, valid_fraction=0.25)
    assert loaded_pairs.valid is not None
    held, kept = (
        set(loaded_pairs.valid.prompt_hashes.tolist()),
        set(loaded_pairs.train.prompt_hashes.tolist()),
    )
    assert len(held) + len(kept) == 20 and held and kept and not held & kept
    count = 3 * len(held)
    assert (len(loaded_pairs.valid), len(loaded_pairs.train)) == (
        count,
        120 - 2 * count,
    )  # held-out pairs once
    assert [t for t in notices(events) if "draw" in t or t.startswith("Held out")] == [
        f"Held out {count} of 60 pairs (--valid-fraction 0.25), no prompt on both sides."
    ]


@pytest.mark.parametrize(
    ("fraction", "held", "sentence"),
    [
        (1e-9, 1, "No prompt's draw is below --valid-fraction 1e-09: the one with the lowest is"),
        (0.999, 5, "Every prompt's draw is below --valid-fraction 0.999: the one with the highest"),
    ],
)
def test_a_side_without_a_prompt_gets_one_and_that_is_reported(
    llama: Path, tmp_path: Path, fraction: float, held: int, sentence: str
) -> None:
    file, events = tiny.save_pairs(tmp_path / "a.jsonl", 6), list[Event]()
    loaded_pairs = loaded(llama, [str(file)], events, valid_fraction=fraction)
    assert loaded_pairs.valid is not None
    assert (len(loaded_pairs.valid), len(loaded_pairs.train)) == (held, 6 - held)
    assert [text for text in notices(events) if text.startswith(sentence)]


def test_pairs_that_are_added_move_none(llama: Path, tmp_path: Path) -> None:
    sides = []
    for count in (100, 300):
        file = tiny.save_pairs(tmp_path / "a.jsonl", count)
        loaded_pairs = loaded(llama, [str(file)], [], valid_fraction=0.2)
        assert loaded_pairs.valid is not None
        sides.append((set(locations(loaded_pairs.train)), set(locations(loaded_pairs.valid))))
    (train_before, valid_before), (train_after, valid_after) = sides
    assert train_before < train_after
    assert valid_before < valid_after


def test_held_out_prompts_that_are_trained_on_are_reported(llama: Path, tmp_path: Path) -> None:
    rows = [tiny.toy_pair(n) | {"prompt": f"help {n}"} for n in range(12)]
    for name, part in (("train", rows[:8]), ("valid", rows[6:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)) + "\n")
    events: list[Event] = []
    loaded_pairs = loaded(llama, [str(tmp_path)], events)
    assert loaded_pairs.valid is not None and len(loaded_pairs.valid) == 6
    (notice,) = [text for text in notices(events, warning=True) if "trained on" in text]
    assert notice.startswith("2 of 6 held-out pairs have a prompt that is also trained on")


def test_reasoning_that_appears_late_switches_it_on_for_all(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "RECOGNIZED_ROWS", 5)
    template = "{% if enable_thinking %}please{% endif %}" + tiny.CHATML.replace(
        "message['content']", "(message['reasoning_content'] or '') + message['content']"
    )
    base = tiny.save_base(tmp_path / "base", template=template)
    rows = [tiny.toy_pair(n) for n in range(12)]
    thought = {"role": "assistant", "content": "please check", "reasoning_content": "hello"}
    rows[9] = {"prompt": "help", "chosen": [thought], "rejected": [thought | {"content": "later"}]}
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    events: list[Event] = []
    loaded_pairs = loaded(base, [str(file)], events)
    assert loaded_pairs.thinking
    assert any("encoded again" in text for text in notices(events))
    again: list[Event] = []
    assert loaded(base, [str(file)], again).thinking
    assert not any("encoded again" in text for text in notices(again))


def test_a_second_start_reads_no_row(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tiny.save_pairs(tmp_path / "a.jsonl", 30)
    train(settings(llama, file, tmp_path / "one", steps=1))

    def refused(*arguments: Any) -> Any:
        raise AssertionError("rows are read again")

    monkeypatch.setattr(pipeline, "iter_rows", refused)
    monkeypatch.setattr(pipeline, "iter_chunks", refused)
    events: list[Event] = []
    train(settings(llama, file, tmp_path / "two", steps=1), [events.append])
    assert f"{file}: read as: texts, explicit prompt." in notices(events)


def test_the_hash_of_a_stored_prompt_is_that_of_the_pair(llama: Path, tmp_path: Path) -> None:
    file = tiny.save_pairs(tmp_path / "a.jsonl", 5)
    loaded_pairs = loaded(llama, [str(file)], [])
    expected = np.array([prompt_hash(pair) for pair in load_pairs(file)], dtype=np.uint64)
    assert np.array_equal(loaded_pairs.train.prompt_hashes, expected)


@pytest.mark.parametrize("cached", [False, True])
def test_a_source_of_which_no_pair_is_left_is_one_message(
    llama: Path, tmp_path: Path, cached: bool
) -> None:
    ties = tmp_path / "ties.jsonl"
    answers = [{"text": "yes", "score": 1.0}, {"text": "no", "score": 1.0}]
    ties.write_text(json.dumps({"prompt": "hi", "completions": answers}) + "\n")
    pairs = tiny.save_pairs(tmp_path / "pairs.jsonl", 4)
    if cached:
        loaded_pairs = loaded(llama, [str(pairs), str(ties)], [], valid_fraction=0)
        assert len(loaded_pairs.train) == 4
    with pytest.raises(OrpoError, match="No training pair is left: 1 x "):
        loaded(llama, [str(ties)], [])


@pytest.mark.parametrize(
    ("counts", "weights", "wrong"),
    [
        ((1,), (0.3,), ["0:0.3: of its 1 pair that leaves none"]),
        ((3,), (0.1,), ["0:0.1: of its 3 pairs that leaves none"]),
        ((16, 1), (1, 0.3), ["1:0.3: of its 1 pair that leaves none"]),
        ((2, 4, 1), (0.2, 0.1, 0.5), ["0:0.2", "1:0.1", "2:0.5"]),
    ],
)
def test_a_weight_that_leaves_no_pair_is_named(
    llama: Path,
    tmp_path: Path,
    counts: tuple[int, ...],
    weights: tuple[float, ...],
    wrong: list[str],
) -> None:
    files = [tiny.save_pairs(tmp_path / f"{n}", count) for n, count in enumerate(counts)]
    named = [
        f"{file.rename(file.with_suffix('.jsonl'))}:{weight}"
        for file, weight in zip(files, weights, strict=True)
    ]
    with pytest.raises(OrpoError, match="Weights that are too small:") as caught:
        loaded(llama, named, [], valid_fraction=0)
    lines = str(caught.value).splitlines()[1:-1]
    assert len(lines) == len(wrong)
    for line, ending in zip(lines, wrong, strict=True):
        assert ending.replace(":", ".jsonl:", 1) in line


@pytest.mark.parametrize(("count", "weight"), [(1, 0.6), (1, 1.0), (3, 0.2), (1, 2.0)])
def test_a_weight_that_leaves_one_pair_is_taken(
    llama: Path, tmp_path: Path, count: int, weight: float
) -> None:
    file = tiny.save_pairs(tmp_path / "pairs.jsonl", count)
    train_pairs = loaded(llama, [f"{file}:{weight}"], [], valid_fraction=0).train
    assert len(train_pairs) == max(round(count * weight), 1)


@pytest.mark.parametrize(
    ("pairs", "batch", "steps", "times"), [(3, 8, 1, "2.7"), (1, 4, 6, "24.0")]
)
def test_steps_of_more_pairs_than_there_are_are_reported(
    llama: Path, tmp_path: Path, pairs: int, batch: int, steps: int, times: str
) -> None:
    file = tiny.save_pairs(tmp_path / "pairs.jsonl", pairs)
    events: list[Event] = []
    config = settings(llama, file, tmp_path / "run", steps=steps, batch_size=batch)
    train(config, [events.append])
    (text,) = [x for x in notices(events, warning=True) if x.startswith("A step takes")]
    assert f"A step takes {batch} pairs" in text and f"{times} times in the run" in text
    enough = settings(llama, file, tmp_path / "b", steps=1, batch_size=pairs, micro_batch_size=1)
    events.clear()
    train(enough, [events.append])
    assert not [x for x in notices(events) if x.startswith("A step takes")]


def test_a_weight_that_counts_for_nothing_is_reported(llama: Path, tmp_path: Path) -> None:
    file, held = (
        tiny.save_pairs(tmp_path / f"{n}.jsonl", 10, start=s) for n, s in (("a", 0), ("b", 20))
    )
    events: list[Event] = []
    pairs = loaded(llama, [f"{file}:0.5"], events, valid_data=[f"{held}:0.3"])
    assert (len(pairs.train), len(pairs.valid or [])) == (5, 10)
    wanted = "b.jsonl:0.3: weights count in training alone; each pair is read once."
    assert [text for text in notices(events) if "weights count" in text] == [f"{tmp_path}/{wanted}"]
    logged: list[str] = []
    assert len(load_pairs(f"{held}:2", log=logged.append)) == 10
    assert logged[0].endswith("b.jsonl:2: weights count in training alone; each pair is read once.")
