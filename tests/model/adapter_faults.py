"""Damaged adapter folders by seed: header, tensors, config and their bytes, made wrong."""

import json
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from tests import tiny
from tests.alarm import no_hang
from tests.model.test_adapters import adapted

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "head_dim": 4,
}
Random = np.random.Generator
MEMORY_BYTES = 40_000_000  # of Python's and mlx's; an intact adapter takes 1 MB
DTYPES = ["F32", "F16", "BF16", "I32", "U8", "F64", "BOOL", "F8_E4M3", "C64", "Q4", "", None, 7]
NUMBERS: list[Any] = [
    0, 1, 2, 3, 4, 5, 8, 16, 255, -1, 2**31, 2**32, 2**62, 2**63, 2**64, 10**30, 1.0, 1.5, True,
    None, "4", [], {},
]  # fmt: skip
VALUES: list[Any] = [
    *NUMBERS, 1e39, -1e300, float("nan"), float("inf"), "lora", "dora", "full", ["q_proj"],
    [["q_proj"]], [""], [None], {"rank": 2}, "x" * 10_000, [0] * 10_000, "\ud800",
]  # fmt: skip
KEYS = ["rank", "use_dora", "q_proj", ".*", "(.|.)*m", "[", "\\2", "(?i)Q_PROJ"]
LEAVES = ["lora_a", "lora_b", "m", "weight", "lora_a.0", "", "\x00", "../../x", "é" * 300]


def save_run(folder: Path, kind: str, family: str, names: list[str]) -> Path:
    """A tiny base and an adapter on it, in `base` and `run` of a folder; the base."""
    base = tiny.save_base(folder / "base", family, **SMALL)
    adapted(base, folder / "run", names, "lora" if kind == "experts" else kind)
    return base


def fuzz_kinds(
    folder: Path,
    kinds: Iterable[str],
    inputs: int,
    fuzz_kind: Callable[[Path, str, int, int], Counter[str]],
) -> Counter[str]:
    """How `inputs` damaged adapters end, as many of each kind."""
    names, ends = list(kinds), Counter[str]()
    for seed, kind in enumerate(names):
        (folder / kind).mkdir()
        ends += fuzz_kind(folder / kind, kind, inputs // len(names), seed)
    assert ends.total() == inputs
    return ends


def fuzz(
    weights: Path, config: Path, folder: Path, count: int, seed: int, end: Callable[[], str]
) -> Counter[str]:
    """How so many damaged copies of two files, written into `folder`, end.

    Raises what `end` raises, and for one that takes too long or too much memory.
    """
    folder.mkdir()
    ends: Counter[str] = Counter()
    tracemalloc.start()
    try:
        for pair in damaged(weights.read_bytes(), config.read_bytes(), count, seed):
            for file, content in zip((weights, config), pair, strict=True):
                (folder / file.name).write_bytes(content)
            tracemalloc.reset_peak()
            mx.reset_peak_memory()
            with no_hang():
                ends[end()] += 1
            assert tracemalloc.get_traced_memory()[1] + mx.get_peak_memory() < MEMORY_BYTES
    finally:
        tracemalloc.stop()
    return ends


def damaged(weights: bytes, config: bytes, count: int, seed: int) -> Iterator[tuple[bytes, bytes]]:
    """So many damaged pairs of files; a seed gives the same ones again."""
    random = np.random.default_rng(seed)
    kinds = [_header, _config, _data, _bytes_of_weights, _bytes_of_config, _length]
    for _ in range(count):
        pair = weights, config
        for _ in range(random.integers(1, 4)):
            pair = kinds[random.choice(6, p=[0.4, 0.3, 0.1, 0.08, 0.06, 0.06])](*pair, random)
        yield pair


def parse(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file, read without any check."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header: Any, data: bytes, random: Random | None = None) -> bytes:
    text = json.dumps(header).encode(errors="surrogatepass")
    if random is not None and random.random() < 0.1:  # a name twice, which no dict can hold
        text = text[:-1] + b"," + text[1:] if len(text) > 2 else text
    return len(text).to_bytes(8, "little") + text + data


def _header(weights: bytes, config: bytes, random: Random) -> tuple[bytes, bytes]:
    """One entry of the header becomes wrong, or another that fits its bytes."""
    try:
        header, data = parse(weights)
        names = [n for n in header if n != "__metadata__"]
        name = names[random.integers(len(names))]
        changes = [_dtype, _shape, _move, _name, _gone, _metadata, _reshaped, _swapped, _retyped]
        changes[random.integers(len(changes))](header, name, random)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):  # damaged before
        return weights, config
    return join(header, data, random), config


def _dtype(header: dict[str, Any], name: str, random: Random) -> None:
    header[name]["dtype"] = DTYPES[random.integers(len(DTYPES))]


def _shape(header: dict[str, Any], name: str, random: Random) -> None:
    shape = header[name]["shape"]
    if random.random() < 0.2:
        header[name]["shape"] = _one(NUMBERS, random)
    elif random.random() < 0.3:
        shape.append(_one(NUMBERS, random))
    else:
        shape[random.integers(len(shape))] = _one(NUMBERS, random)


def _move(header: dict[str, Any], name: str, random: Random) -> None:
    offsets = header[name]["data_offsets"]
    if random.random() < 0.2:
        header[name]["data_offsets"] = _one(NUMBERS, random)
    elif random.random() < 0.5:
        offsets[random.integers(2)] = _one(NUMBERS, random)
    else:  # the same length at another offset
        by = int(random.integers(-64, 65))
        header[name]["data_offsets"] = [offset + by for offset in offsets]


def _name(header: dict[str, Any], name: str, random: Random) -> None:
    module = name.rpartition(".")[0] if random.random() < 0.7 else "model.layers.9.x"
    header[f"{module}.{_one(LEAVES, random)}"] = header.pop(name)


def _gone(header: dict[str, Any], name: str, random: Random) -> None:
    if random.random() < 0.5:
        del header[name]
    else:
        del header[name][_one(["dtype", "shape", "data_offsets"], random)]


def _metadata(header: dict[str, Any], name: str, random: Random) -> None:
    header["__metadata__"] = _one([{"format": 1}, [], "pt", None, {"a": {"b": "c"}}, {}], random)


def _reshaped(header: dict[str, Any], name: str, random: Random) -> None:
    """The same number of values in another shape: past the header."""
    count = int(np.prod(header[name]["shape"]))
    width = _one([1, 2, 4, 8, count], random)
    header[name]["shape"] = _one(
        [[count // width, width], [width, count // width], [1, count // width, width], [count]],
        random,
    )


def _swapped(header: dict[str, Any], name: str, random: Random) -> None:
    """Two tensors take each other's names: past the header."""
    names = [n for n in header if n != "__metadata__"]
    other = _one(names, random)
    header[name], header[other] = header[other], header[name]


def _retyped(header: dict[str, Any], name: str, random: Random) -> None:
    """As many bytes of another type: past the header."""
    header[name]["dtype"] = _one(["I32", "U32", "F32"], random)


def _config(weights: bytes, config: bytes, random: Random) -> tuple[bytes, bytes]:
    """One value of the config, or of an object in it, becomes another."""
    try:
        content = json.loads(config)
        inner = [value for value in content.values() if isinstance(value, dict)]
        location = _one(inner, random) if inner and random.random() < 0.6 else content
        key = _one(list(location) if location and random.random() < 0.9 else KEYS, random)
        if random.random() < 0.2:
            location.pop(key, None)
        else:
            location[key] = _one(VALUES, random)
        return weights, json.dumps(content).encode(errors="surrogatepass")
    except (ValueError, AttributeError, TypeError, RecursionError):  # damaged before
        return weights, config


def _data(weights: bytes, config: bytes, random: Random) -> tuple[bytes, bytes]:
    """A value becomes another, perhaps NaN or infinite: past the header."""
    content = bytearray(weights)
    start = 8 + int.from_bytes(content[:8], "little")
    if start + 4 > len(content):
        return weights, config
    location = int(random.integers(start, len(content) - 3))
    value = np.float32(_one([np.nan, np.inf, 0.0, 1e30, -1.0], random))
    content[location : location + 4] = value.tobytes()
    return bytes(content), config


def _bytes_of_weights(weights: bytes, config: bytes, random: Random) -> tuple[bytes, bytes]:
    return _bytes(weights, random), config


def _bytes_of_config(weights: bytes, config: bytes, random: Random) -> tuple[bytes, bytes]:
    if random.random() < 0.2:
        return weights, _one([b"", b"null", b"[" * 50_000, b"{}", b"\xff\xfe", b"1" * 9000], random)
    return weights, _bytes(config, random)


def _length(weights: bytes, config: bytes, random: Random) -> tuple[bytes, bytes]:
    """Another length of the header."""
    wrong = _one([0, 1, 2, 3, 7, len(weights), 2**31, 2**63, 2**64 - 1], random)
    return wrong.to_bytes(8, "little") + weights[8:], config


def _bytes(content: bytes, random: Random) -> bytes:
    """Cut, longer, or with some bytes changed."""
    location = int(random.integers(len(content) + 1))
    changes: list[Callable[[], bytes]] = [
        lambda: content[:location],
        lambda: content + random.bytes(int(random.integers(1, 40))),
        lambda: (
            content[:location] + random.bytes(int(random.integers(1, 5))) + content[location + 1 :]
        ),
    ]
    return changes[random.integers(3)]()


def _one(values: list[Any], random: Random) -> Any:
    return values[random.integers(len(values))]
