"""Token ids on disk: what was saved is read, in parts and in any order; damage is found."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.data.tokens.pair_facts import count_rows, pair_lengths
from orpo_mlx.data.tokens.store import (
    PAIRS_FILE,
    PROMPTS,
    Store,
    StoredPairs,
    encoded_batch,
    iter_prompts,
    save_store,
)
from orpo_mlx.errors import OrpoError


def random_pairs(count: int, seed: int = 0) -> list[EncodedPair]:
    random = np.random.default_rng(seed)
    pairs = []
    for number in range(count):
        parts = [random.integers(0, 9, random.integers(1, 30)).astype(np.int32) for _ in range(3)]
        pairs.append(EncodedPair(*parts, location=f"ünï.jsonl:{number + 1}"))
    return pairs


def saved(folder: Path, pairs: list[EncodedPair], size: int = 7) -> Store:
    starts = range(0, len(pairs), size)
    batches = (encoded_batch(pairs[s : s + size], [s] * len(pairs[s : s + size])) for s in starts)
    save_store(folder, batches, lambda: {"known": "later"})
    return Store(folder)


def same(first: EncodedPair, second: EncodedPair) -> bool:
    parts = zip(first[:3], second[:3], strict=True)
    alike = (first.location, first.weight) == (second.location, second.weight)
    return alike and all(np.array_equal(a, b) for a, b in parts)


@pytest.fixture
def pairs() -> list[EncodedPair]:
    return random_pairs(100)


def test_every_pair_comes_back_with_its_location(tmp_path: Path, pairs: list[EncodedPair]) -> None:
    stored = StoredPairs([saved(tmp_path / "a", pairs), saved(tmp_path / "b", pairs[:30], 11)])
    assert len(stored) == 130
    for row in [*range(130), *range(129, -1, -7)]:
        assert same(stored[row], pairs[row % 100])
    assert same(stored[-1], pairs[29])
    with pytest.raises(IndexError):
        stored[130]


def test_lengths_hashes_and_facts_are_those_of_the_pairs(
    tmp_path: Path, pairs: list[EncodedPair]
) -> None:
    store = saved(tmp_path / "a", pairs)
    assert store.facts["known"] == "later"
    for row, (prompt, chosen, rejected, shared) in enumerate(pair_lengths(StoredPairs([store]))):
        pair = pairs[row]
        assert [prompt, chosen, rejected] == [len(part) for part in pair[:3]]
        alike = 0  # inputs of both rows, the last token of the longer response is none
        while alike < min(chosen, rejected) and pair.chosen[alike] == pair.rejected[alike]:
            alike += 1
        assert shared == prompt + min(alike, max(chosen, rejected) - 1)
    assert np.array_equal(pair_lengths(StoredPairs([store])), pair_lengths(pairs))
    assert store.prompt_hashes.tolist() == [7 * (row // 7) for row in range(100)]


def test_a_selection_keeps_its_order_and_may_name_a_pair_twice(
    tmp_path: Path, pairs: list[EncodedPair]
) -> None:
    rows = np.array([5, 99, 5, 0, 42])
    chosen = StoredPairs([saved(tmp_path / "a", pairs)]).select(rows)
    assert all(same(pair, pairs[row]) for pair, row in zip(chosen, rows, strict=True))
    assert np.array_equal(pair_lengths(chosen), pair_lengths([pairs[row] for row in rows]))
    again = chosen.select(np.array([4, 1]))
    assert [pair.location for pair in again] == [pairs[42].location, pairs[99].location]
    assert [pair.location for pair in chosen[1:3]] == [pairs[99].location, pairs[5].location]


@pytest.mark.parametrize("listed", [True, False])
def test_prompts_together_are_those_of_the_pairs(
    tmp_path: Path, pairs: list[EncodedPair], listed: bool
) -> None:
    source = pairs if listed else StoredPairs([saved(tmp_path / "a", pairs)])
    members = np.random.default_rng(1).integers(0, 100, 300)
    by_position: dict[int, np.ndarray] = {}
    for prompts in iter_prompts(source, members):
        for position, start, length in zip(
            prompts.positions, prompts.starts, prompts.lengths, strict=True
        ):
            by_position[int(position)] = prompts.ids[start : start + length]
    assert sorted(by_position) == list(range(300))
    assert all(np.array_equal(by_position[p], pairs[m].prompt) for p, m in enumerate(members))


def test_the_digest_follows_from_ids_and_order_not_from_batches(
    tmp_path: Path, pairs: list[EncodedPair]
) -> None:
    first = StoredPairs([saved(tmp_path / "a", pairs, 7)])
    assert first.digest == StoredPairs([saved(tmp_path / "b", pairs, 40)]).digest
    assert first.digest != StoredPairs([saved(tmp_path / "c", pairs[::-1])]).digest
    assert first.digest != first.select(np.arange(99, -1, -1)).digest
    moved = [p._replace(prompt=np.append(p.prompt, p.chosen[0])) for p in pairs]
    assert first.digest != StoredPairs([saved(tmp_path / "d", moved)]).digest


def test_weights_and_rows_without_a_rejected_response_come_back(
    tmp_path: Path, pairs: list[EncodedPair]
) -> None:
    weights = np.random.default_rng(2).random(100).astype(np.float32)
    data = [pair._replace(weight=float(w)) for pair, w in zip(pairs, weights, strict=True)]
    data[::3] = [pair._replace(rejected=pair.rejected[:0]) for pair in data[::3]]
    store = saved(tmp_path / "a", data)
    stored = StoredPairs([store])
    assert all(same(one, other) for one, other in zip(stored, data, strict=True))
    assert [pair.is_sft for pair in stored] == [row % 3 == 0 for row in range(100)]
    assert np.array_equal(pair_lengths(stored), pair_lengths(data))
    assert store.weights == (weights.min(), weights.max(), weights.mean(dtype=np.float64))
    assert count_rows(stored) == count_rows(data) == {"train_pairs": 66, "sft_rows": 34}
    assert count_rows(pairs) == {}


def test_weights_are_part_of_the_digest_where_one_is_not_1(
    tmp_path: Path, pairs: list[EncodedPair]
) -> None:
    store = saved(tmp_path / "a", pairs)
    assert (store.weights, StoredPairs([store]).weighted) == (None, False)
    heavy = [pairs[0]._replace(weight=2.0), *pairs[1:]]
    digests = [saved(tmp_path / "b", heavy), saved(tmp_path / "c", heavy, 40)]
    first, second = (StoredPairs([store]) for store in digests)
    assert first.weighted and first.digest == second.digest
    assert first.digest != StoredPairs([store]).digest
    # As before there were weights: the lengths and ids of the three parts.
    hashes = []
    for part in range(3):
        lengths = np.array([len(pair[part]) for pair in pairs], np.int32)
        hashes.append(hashlib.sha256(lengths.tobytes()).digest())
        hashes.append(hashlib.sha256(np.concatenate([p[part] for p in pairs]).tobytes()).digest())
    assert store.facts["digest"] == hashlib.sha256(b"".join(hashes)).hexdigest()


def test_a_flipped_bit_of_a_weight_is_detected(tmp_path: Path, pairs: list[EncodedPair]) -> None:
    heavy = [pair._replace(weight=3.0) for pair in pairs]
    saved(tmp_path / "a", heavy, 100)
    file = tmp_path / "a" / PAIRS_FILE
    content = file.read_bytes()
    weights = np.full(100, 3.0, np.float32).tobytes()
    assert content.count(weights) == 1
    at = content.index(weights) + 200
    file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    stored = StoredPairs([Store(tmp_path / "a")])
    with pytest.raises(OrpoError, match="damaged"):
        list(stored)
    assert not (tmp_path / "a").exists()


def test_nothing_is_kept_of_a_store_that_was_not_finished(
    tmp_path: Path, pairs: list[EncodedPair]
) -> None:
    def failing() -> Iterator[pa.RecordBatch]:
        yield encoded_batch(pairs, [0] * 100)
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        save_store(tmp_path / "a", failing(), dict)
    assert list(tmp_path.iterdir()) == []


def flip(file: Path, location: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(location * len(content))] ^= 1
    file.write_bytes(content)


def test_a_flipped_bit_of_any_id_or_location_is_detected_and_the_store_removed(
    tmp_path: Path, pairs: list[EncodedPair]
) -> None:
    detected = 0
    for trial, location in enumerate(np.linspace(0.02, 0.9, 40)):
        folder = tmp_path / str(trial)
        saved(folder, pairs)
        flip(folder / PAIRS_FILE, float(location))
        try:
            read = [
                same(stored, pair)
                for stored, pair in zip(StoredPairs([Store(folder)]), pairs, strict=True)
            ]
            # Padding between columns, or what nothing reads: no pair differs.
            assert all(read)
        except OrpoError as error:
            assert "damaged" in str(error) and "run the command again" in str(error)
            assert not folder.exists()
            detected += 1
        except (pa.ArrowException, OSError, ValueError):
            detected += 1
    assert detected > 10


def test_damaged_lengths_are_found_at_once(tmp_path: Path, pairs: list[EncodedPair]) -> None:
    saved(tmp_path / "a", pairs)
    flip(tmp_path / "a" / PROMPTS, 0.5)
    with pytest.raises(ValueError, match="damaged"):
        Store(tmp_path / "a")
