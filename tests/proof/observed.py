"""What is observed of the files that the scenario leaves, as JSON and as tensors."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import mlx.core as mx
import numpy as np
import pyarrow as pa
import yaml

from tests.proof.commands import every_option
from tests.proof.scenario import FAMILIES, RUNS

# How fast a machine is, and how much memory it has.
MACHINE = {"tokens_per_second", "peak_memory_gb"}
# What later versions add to a run's config.yaml.
NEWER = {"rules"}
# Written by the tokenizers library.
UNREAD = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
LINE = 100
TENSORS = "tensors.safetensors"


class Observed(NamedTuple):
    """`json` is by the name of a file of the record; tensors are by file and name."""

    json: dict[str, Any]
    tensors: dict[str, mx.array]


def observe(folder: Path) -> Observed:
    """All that is compared, of the folder in which the scenario ran."""
    outputs = {file.stem: load_json(file) for file in sorted((folder / "json").glob("*.json"))}
    root = f"{folder.resolve()}/"
    files, tensors = {}, {}
    for file in written_files(folder):
        name = str(file.relative_to(folder))
        files[name] = describe(file, root)
        if has_values(name):
            tensors |= {f"{name}:{inner}": value for inner, value in read_tensors(file)}
    current = {
        "facts": load_json(folder / "facts.json"),
        "options": every_option(),
        "json_keys": {name: keys_of(value) for name, value in outputs.items()},
        "tokens": observe_tokens(folder, outputs),
        "files": files,
        "numbers": observe_numbers(folder, outputs),
        "card_prompts": prompts_in(folder, outputs["push-adapter"]["card"]),
    }
    return Observed(json.loads(json.dumps(current)), tensors)


def written_files(folder: Path) -> list[Path]:
    """The files of the runs that are compared, and of all that was made of them."""
    parts = [f"runs/{run}" for run in RUNS] + [f"runs/{family}" for family in FAMILIES]
    parts += ["out", *(str(p.relative_to(folder)) for p in folder.glob("families/*-*"))]
    return sorted(file for part in parts for file in (folder / part).rglob("*") if file.is_file())


def has_values(name: str) -> bool:
    """Whether the tensors of a file are compared by value too.

    Checkpoints of one run are enough; the bases of families come from a random generator.
    """
    if any(family in name for family in FAMILIES):
        return False
    return "checkpoints" not in name or "runs/lora/" in name


def keys_of(value: Any) -> Any:
    """The keys of a JSON value, recursively, and the kinds of its values.

    A key that is a sentence or a file's name is data, and is shown as *.
    """
    if isinstance(value, Mapping):
        pairs = [(k if re.fullmatch(r"[\w/+-]+", k) else "*", keys_of(v)) for k, v in value.items()]
        return {key: _merged([v for k, v in pairs if k == key]) for key in sorted(dict(pairs))}
    if isinstance(value, list):
        return [_merged([keys_of(v) for v in value])] if value else []
    if isinstance(value, bool) or value is None:
        return {True: "bool", False: "bool", None: "null"}[value]
    return "text" if isinstance(value, str) else "number"


def _merged(kinds: list[Any]) -> Any:
    """What several values of a list or of one key have between them."""
    if all(isinstance(kind, dict) for kind in kinds):
        keys = sorted({key for kind in kinds for key in kind})
        return {key: _merged([kind[key] for kind in kinds if key in kind]) for key in keys}
    if all(isinstance(kind, list) for kind in kinds):
        inner = [part for kind in kinds for part in kind]
        return [_merged(inner)] if inner else []
    texts = [kind if isinstance(kind, str) else json.dumps(kind, sort_keys=True) for kind in kinds]
    return "|".join(sorted({part for text in texts for part in text.split("|")}))


def observe_tokens(folder: Path, outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Ids in the cache, by f315083's key of their entry, and in previews; pairs as they are read.

    The entry that f315083 made itself is not looked at, but for the one that was made in its stead.
    """
    entries, keys = {}, load_json(folder / "keys.json")
    for file in sorted((folder / "cache" / "tokens").glob("*/pairs.arrow")):
        _, _, text = (file.parent / "facts.json").read_text(encoding="utf-8").partition(" ")
        facts = json.loads(text)
        with pa.ipc.open_file(str(file)) as reader:
            table = reader.read_all()
        ids = [table.column(name).to_pylist() for name in ("prompt", "chosen", "rejected")]
        if file.parent.name not in keys:
            continue
        entries[keys[file.parent.name]] = {
            "source": facts["outcome"]["source"],
            "files": sorted(p.name for p in file.parent.iterdir()),
            "facts": keys_of(facts),
            "schema": [f"{field.name}: {field.type}" for field in table.schema],
            "lengths": [[len(row) for row in rows] for rows in zip(*ids, strict=True)],
            "ids": digest(ids),
            "shared": table.column("shared").to_pylist(),
            "places": table.column("place").to_pylist(),
            "prompt_hashes": digest(table.column("prompt_hash").to_pylist()),
            "digest": facts["digest"],
        }
    previews = {
        name: [
            {
                part: [[s["role"], digest(s["ids"])] for s in pair[part]]
                for part in ("prompt", "chosen", "rejected")
            }
            for pair in value["pairs"]
        ]
        for name, value in outputs.items()
        if name.startswith("preview-model")
    }
    converted = {
        file.name: digest(file.read_text(encoding="utf-8"))
        for file in sorted((folder / "converted").iterdir())
    }
    pairs = {name: digest(rows) for name, rows in load_json(folder / "pairs.json").items()}
    return {"entries": entries, "previews": previews, "converted": converted, "load_pairs": pairs}


def observe_numbers(folder: Path, outputs: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured, which rounding may change a little."""
    current = {name: outputs[name] for name in ("evaluate", "train", "resume", "generate")}
    current |= {name: outputs[name]["drift"] for name in ("fuse", "fuse-4bit")}
    current["convert"] = outputs["convert"]["divergence"]
    for run in RUNS:
        lines = (folder / "runs" / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        current[f"metrics of {run}"] = [
            {k: v for k, v in json.loads(line).items() if k not in MACHINE} for line in lines
        ]
    return current


def prompts_in(folder: Path, card: str) -> list[str]:
    """The prompts of the run's pairs that a card shows."""
    rows = (folder / "data" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(row)["prompt"] for row in rows]
    return sorted(prompt for prompt in prompts if prompt in card)


def describe(file: Path, root: str) -> Any:
    """The format of a file: names, types and shapes of tensors, settings, keys of metrics."""
    if file.suffix == ".safetensors":
        return _safetensors(file)
    if file.suffix == ".gguf":
        return _gguf(file)
    if file.name == "metrics.jsonl":
        rows = file.read_text(encoding="utf-8").splitlines()
        return [sorted(json.loads(row)) for row in rows]
    if file.name in UNREAD or file.suffix not in (".json", ".yaml"):
        return "a file"
    text = file.read_text(encoding="utf-8").replace(root, "")
    if file.suffix == ".json":
        return json.loads(text)
    return {key: value for key, value in yaml.safe_load(text).items() if key not in NEWER}


def _safetensors(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    metadata = header.pop("__metadata__", {})
    tensors = {name: [t["dtype"], *t["shape"]] for name, t in sorted(header.items())}
    return {"metadata": metadata, "tensors": tensors}


def _gguf(file: Path) -> dict[str, Any]:
    reader = gguf.GGUFReader(file)
    fields = {}
    for name, field in sorted(reader.fields.items()):
        value = field.contents()
        if name in ("general.name", "general.description"):  # words
            value = "text"
        fields[name] = digest(value) if isinstance(value, list) else value
    tensors = {t.name: [t.tensor_type.name, *map(int, t.shape)] for t in reader.tensors}
    return {"fields": fields, "tensors": dict(sorted(tensors.items()))}


def read_tensors(file: Path) -> Iterator[tuple[str, mx.array]]:
    """The tensors of a file; q8_0 as its bytes."""
    if file.suffix == ".safetensors":
        yield from mx.load(str(file)).items()  # type: ignore[union-attr]
    elif file.suffix == ".gguf":
        for tensor in gguf.GGUFReader(file).tensors:
            yield tensor.name, mx.array(np.array(tensor.data))


def bytes_of(value: mx.array) -> bytes:
    """The bits of a tensor, for numpy knows no bfloat16."""
    return bytes(memoryview(mx.contiguous(value).reshape(-1).view(mx.uint8)))


def fingerprint_of(value: mx.array) -> str:
    """A digest of type, shape and bits."""
    head = f"{value.dtype}{value.shape}".encode()
    return hashlib.sha256(head + bytes_of(value)).hexdigest()[:24]


def digest(value: Any) -> str:
    """Of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]


def load_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def save_json(file: Path, value: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(_written(value, "") + "\n", encoding="utf-8")


def _written(value: Any, indent: str) -> str:
    """JSON with short objects and lists on one line."""
    line = json.dumps(value, sort_keys=True, ensure_ascii=False)
    if len(line) <= LINE or not isinstance(value, dict | list) or not value:
        return line
    inner = indent + " "
    if isinstance(value, list):
        parts, ends = [_written(part, inner) for part in value], "[]"
    else:
        named = ((json.dumps(key, ensure_ascii=False), value[key]) for key in sorted(value))
        parts, ends = [f"{key}: {_written(part, inner)}" for key, part in named], "{}"
    return f"{ends[0]}\n{inner}" + f",\n{inner}".join(parts) + f"\n{indent}{ends[1]}"


def save_record(folder: Path, current: Observed) -> None:
    """Write a record; tensors that are alike are written once."""
    for name, value in current.json.items():
        save_json(folder / f"{name}.json", value)
    names = {name: fingerprint_of(value) for name, value in current.tensors.items()}
    save_json(folder / "tensors.json", names)
    values = {names[name]: value for name, value in current.tensors.items()}
    mx.save_safetensors(str(folder / TENSORS), values)


def load_record(folder: Path) -> Observed:
    """A record as it was written."""
    current = {file.stem: load_json(file) for file in folder.glob("*.json")}
    values: Any = mx.load(str(folder / TENSORS))
    tensors = {name: values[key] for name, key in current.pop("tensors").items()}
    return Observed(current, tensors)
