"""What is kept of the blocks below the adapters: the same numbers, computed once."""

import errno
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.events import Event
from orpo_mlx.model import lora
from orpo_mlx.run_folder.pair_file import STATES, SUMS_OF_PAIRS
from orpo_mlx.training import run, trunk_cache
from orpo_mlx.training.forward_path import ForwardPath, arrays_of, fast_path
from orpo_mlx.training.loop import train
from orpo_mlx.training.trunk_cache import TrunkCache, find_boundary, trunk_bytes
from tests import tiny
from tests.training.runs import notices, rows, settings, stop_after, tensors
from tests.twin import allowed_error, in_float64

pytestmark = pytest.mark.touchy

# Three epochs of sixteen pairs, dropout included.
EPOCHS: dict[str, Any] = {"num_layers": 1, "steps": 12, "dropout": 0.1}


@pytest.fixture
def fills(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pairs whose trunk was run, in order."""
    filled: list[int] = []
    compute = TrunkCache._compute

    def counted(self: TrunkCache, index: int) -> np.ndarray:
        filled.append(index)
        return compute(self, index)

    monkeypatch.setattr(TrunkCache, "_compute", counted)
    return filled


def equal_runs(output: Path, whole: Path) -> bool:
    """Whether two runs have the same metrics and the same adapter, bit for bit."""
    name = "adapters.safetensors"
    same = (output / name).read_bytes() == (whole / name).read_bytes()
    return same and rows(output) == rows(whole)


@pytest.fixture(scope="module")
def whole(llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of EPOCHS that nothing disturbed. Do not write there."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    train(settings(llama, data, output, **EPOCHS, save_every=5))
    return output


@pytest.mark.parametrize(
    "changes", [{}, {"grad_checkpoint": True}, {"nll_on": "prompt+response"}, {"num_layers": 2}]
)
def test_a_run_with_a_kept_trunk_equals_one_without(
    llama: Path,
    data: Path,
    tmp_path: Path,
    fills: list[int],
    changes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[Event] = []
    options = EPOCHS | changes
    train(settings(llama, data, tmp_path / "kept", **options), [events.append])
    assert sorted(fills) == list(range(16))  # each pair once, in three epochs
    first = 4 - options["num_layers"]
    (notice,) = [text for text in notices(events) if "Later epochs" in text]
    assert notice.startswith(
        f"Later epochs start at block {first}, the first that is trained; kept"
    )
    assert not (tmp_path / "kept" / "trunk").exists()
    monkeypatch.setattr(trunk_cache, "find_boundary", lambda path: None)
    train(settings(llama, data, tmp_path / "not", **options))
    for got, expected in zip(rows(tmp_path / "kept"), rows(tmp_path / "not"), strict=True):
        # float32: the trunk runs pair by pair, other shapes of the same products
        assert got == pytest.approx(expected, abs=2e-5, rel=1e-4)


def test_nothing_is_kept_for_a_single_epoch_nor_for_adapters_on_all_blocks(
    llama: Path, data: Path, tmp_path: Path, fills: list[int]
) -> None:
    train(settings(llama, data, tmp_path / "one", num_layers=1, steps=4))
    train(settings(llama, data, tmp_path / "all", steps=12))
    assert fills == []


def test_a_stopped_run_goes_on_bit_for_bit_with_its_trunk_or_without(
    llama: Path, data: Path, tmp_path: Path, fills: list[int], whole: Path
) -> None:
    for case in ("there", "gone", "of-other-pairs", "cut-short", "no-states"):
        output = tmp_path / case
        train(settings(llama, data, output, **EPOCHS), [stop_after(3)])
        assert (output / "trunk").is_dir()
        if case == "gone":
            for file in (output / "trunk").iterdir():
                file.unlink()
            (output / "trunk").rmdir()
        elif case == "cut-short":
            (output / "trunk" / "states.bin").write_bytes(b"")
        elif case == "no-states":
            (output / "trunk" / "states.bin").unlink()
        elif case == "of-other-pairs":
            (output / "trunk" / "facts.json").write_text('{"data": "another"}')
        fills.clear()
        train(settings(llama, data, output, **EPOCHS, resume=True))
        assert len(fills) == {"there": 4}.get(case, 16)  # three steps of four pairs were done
        assert rows(output) == rows(whole)
        adapter = "adapters.safetensors:"
        got, expected = (
            {n: v for n, v in tensors(folder).items() if n.startswith(adapter)}
            for folder in (output, whole)
        )
        assert got == expected


def test_a_full_disk_keeps_nothing_and_that_is_reported(
    llama: Path, data: Path, tmp_path: Path, fills: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(
        "orpo_mlx.training.trunk_cache.shutil.disk_usage", lambda folder: Usage(200_000)
    )
    events: list[Event] = []
    train(settings(llama, data, tmp_path / "run", **EPOCHS), [events.append])
    assert fills == []
    assert any(
        t.startswith("The disk has no room to keep the states below") for t in notices(events)
    )


@pytest.mark.parametrize("first", ["room", "no room"])
def test_a_run_goes_on_bit_for_bit_whatever_room_the_disk_has_by_then(
    llama: Path, data: Path, tmp_path: Path, whole: Path, first: str, monkeypatch: Any
) -> None:
    """The kept states are other products than the tree's: a run has them to its end, or never."""
    output, without = tmp_path / "run", tmp_path / "without"
    room = [first == "room"]
    monkeypatch.setattr(trunk_cache, "room_for", lambda size, folder: room[0])
    if not room[0]:
        train(settings(llama, data, without, **EPOCHS))
    train(settings(llama, data, output, **EPOCHS), [stop_after(3)])
    room[0] = not room[0]
    events: list[Event] = []
    train(settings(llama, data, output, **EPOCHS, resume=True), [events.append])
    assert equal_runs(output, whole if first == "room" else without)
    [text] = [text for text in notices(events) if "no room" in text]
    verb = {"room": "has", "no room": "had"}[first]
    assert text.startswith(f"The disk {verb} no room to keep the states below block 3, the first")
    assert not (output / "trunk").exists()


def test_states_that_are_kept_already_need_no_room(
    llama: Path, data: Path, tmp_path: Path, fills: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    train(settings(llama, data, output, **EPOCHS), [stop_after(3)])
    fills.clear()

    class Usage(NamedTuple):
        free: int

    size = (output / "trunk" / "states.bin").stat().st_size
    monkeypatch.setattr(
        "orpo_mlx.training.trunk_cache.shutil.disk_usage", lambda folder: Usage(size)
    )
    train(settings(llama, data, output, **EPOCHS, resume=True))
    assert len(fills) == 4


@pytest.mark.parametrize("damaged", [STATES, SUMS_OF_PAIRS])
def test_states_that_have_changed_are_computed_again_and_reported_once(
    llama: Path, data: Path, tmp_path: Path, fills: list[int], whole: Path, damaged: str
) -> None:
    output = tmp_path / "run"
    train(settings(llama, data, output, **EPOCHS), [stop_after(4)])
    file = output / "trunk" / damaged
    content = bytearray(file.read_bytes())
    for share in (4, 2):  # of two pairs
        content[len(content) // share] ^= 4
    file.write_bytes(content)
    fills.clear()
    events: list[Event] = []
    train(settings(llama, data, output, **EPOCHS, resume=True), [events.append])
    assert len(fills) == 2
    assert notices(events, warning=True) == [
        f"{output}/trunk/states.bin is damaged: what has changed there is computed again."
    ]
    assert equal_runs(output, whole)


def test_a_disk_that_fills_up_ends_the_keeping_and_not_the_run(
    llama: Path,
    data: Path,
    tmp_path: Path,
    fills: list[int],
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "run"
    written: list[int] = []
    true = os.pwrite

    def full(descriptor: int, content: bytes, offset: int) -> int:
        written.append(offset)
        if len(written) > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return true(descriptor, content, offset)

    monkeypatch.setattr(os, "pwrite", full)
    events: list[Event] = []
    train(settings(llama, data, output, **EPOCHS), [events.append])
    assert len(written) == 7
    assert len(fills) == 3 * 16  # those that were kept are computed again in the later epochs
    [warning] = notices(events, warning=True)
    assert warning.startswith(f"{output}/trunk/states.bin cannot be written: the disk is full.")
    assert warning.endswith("computed again in every epoch from now on: slower, the same numbers.")
    assert equal_runs(output, whole)


def test_the_states_make_room_for_a_checkpoint(
    llama: Path, data: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    monkeypatch.setattr(run, "has_room", lambda output, size: not (output / "trunk").exists())
    events: list[Event] = []
    train(settings(llama, data, output, **EPOCHS, save_every=5), [events.append])
    [warning] = notices(events, warning=True)
    assert warning.startswith("The disk has no room for a checkpoint. The states below the first")
    assert equal_runs(output, whole)
    assert tensors(output) == tensors(whole)


def test_what_the_tree_shares_is_not_kept_pair_by_pair_for_few_epochs(
    llama: Path, tmp_path: Path, fills: list[int]
) -> None:
    rows_ = [
        {
            "prompt": [
                {"role": "system", "content": "check the light card first then " * 8},
                {"role": "user", "content": tiny.toy_pair(n)["prompt"]},
            ],
            "chosen": [{"role": "assistant", "content": "please"}],
            "rejected": [{"role": "assistant", "content": "later"}],
        }
        for n in range(16)
    ]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows_))
    wide = {"num_layers": 1, "micro_batch_size": 4, "max_seq_length": 512}
    train(settings(llama, pairs, tmp_path / "few", **wide, steps=8))
    assert fills == []
    train(settings(llama, pairs, tmp_path / "many", **wide, steps=40))
    assert sorted(fills) == list(range(16))


def random_pairs() -> list[EncodedPair]:
    random = np.random.default_rng(0)
    shared = random.integers(1, tiny.VOCABULARY, 40)

    def ids(count: int) -> np.ndarray:
        return random.integers(1, tiny.VOCABULARY, count).astype(np.int32)

    pairs = []
    for number, (prompt, chosen, rejected) in enumerate([(20, 30, 9), (20, 5, 25), (33, 1, 2)]):
        start = np.concatenate([shared, ids(prompt)]).astype(np.int32)
        pairs.append(EncodedPair(start, ids(chosen), ids(rejected), f"row {number}"))
    # One response the beginning of the other, and a common beginning.
    first = pairs[0]
    pairs.append(first._replace(rejected=np.concatenate([first.chosen, ids(7)])))
    pairs.append(first._replace(rejected=np.concatenate([first.chosen[:20], ids(3)])))
    pairs.append(first._replace(chosen=first.chosen[:4], rejected=first.chosen))
    return pairs


def with_adapter(family: str, names: str = "all-linear") -> ForwardPath:
    model, _ = tiny.build_model(family)
    # Two of gemma4's five blocks take their keys from the blocks below.
    targets = lora.find_targets(model, [names], 1)
    lora.attach(model, targets, kind="lora", rank=4, scale=2.0, dropout=0.0, bits={})
    model.train()
    return fast_path(model)[0]


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_next", "falcon_h1", "mamba2"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_log_probs_from_kept_states_are_those_from_the_tokens(
    tmp_path: Path, family: str, dtype: mx.Dtype
) -> None:
    if dtype == mx.bfloat16 and family == "qwen3_next":
        return  # unquantized experts run in float32 only on MLX's CPU
    path, pairs = with_adapter(family), random_pairs()
    path.model.set_dtype(dtype)
    boundary = find_boundary(path)
    assert boundary == (dtype, 64)
    trunk = TrunkCache(path, pairs, tmp_path / "trunk", {}, boundary)
    for indices in (range(6), [2, 0], [3], range(6)):
        batch = path.batch(pairs, indices, "prompt+response")
        kept, given = arrays_of(batch, trunk.states(batch)), arrays_of(batch)
        got, expected = (
            np.array(path.token_logps(calls, targets)) for calls, targets, *_ in (kept, given)
        )
        if dtype == mx.bfloat16:
            # It rounds a log-prob of 6 to 0.03, the same products in other shapes a few times.
            np.testing.assert_allclose(got, expected, atol=0.15)
            continue
        with in_float64(path.model):
            exact = np.array(path.token_logps(given[0], given[1]))
        allowed = allowed_error(np.abs(expected - exact).max())
        np.testing.assert_allclose(got, exact, rtol=0, atol=allowed)
    trunk.flush()
    again = TrunkCache(path, pairs, tmp_path / "trunk", {}, boundary)
    batch = path.batch(pairs, range(6), "response")
    for one, other in zip(trunk.states(batch), again.states(batch), strict=True):
        assert one.dtype == dtype
        assert mx.array_equal(one, other)
    width = 64 * dtype.size
    assert trunk_bytes(boundary, pairs) == width * len(
        {
            (n, *np.concatenate([p.prompt, r])[: k + 1])
            for n, p in enumerate(pairs)
            for r in (p.chosen, p.rejected)
            for k in range(len(p.prompt) + len(r) - 1)
        }
    )


def test_where_more_than_the_states_crosses_nothing_is_kept() -> None:
    assert find_boundary(with_adapter("gemma4_text")) is None
    assert find_boundary(with_adapter("llama", "embed_tokens")) is None
