"""What the proof looks at: every command on tiny models, in a process and a folder of its own.

Run as `python -m tests.proof.scenario`, in a folder that holds a copy of `start/`. Every path that
it names is relative, so that nothing depends on where that folder is.
"""

import ctypes
import io
import json
import os
import platform
import shutil
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import patch

import orpo_mlx
from orpo_mlx.cli.main import run as orpo_mlx_command

# A source of each format; all are read by one run, which keeps the token ids of each.
FORMATS = (
    "prompt.jsonl", "messages.jsonl", "implicit.jsonl", "hh.jsonl", "orca.jsonl", "alpaca.jsonl",
    "sharegpt.jsonl", "shp.jsonl", "strength.jsonl", "ranked.jsonl", "rated.jsonl", "scored.jsonl",
    "kto.jsonl", "rendered.jsonl", "table.csv", "table.parquet",
)  # fmt: skip
RICH = ("--chat-template", "rich.jinja")
ONCE = (
    "--valid-fraction", 0, "--steps", 1, "--batch-size", 2, "--rank", 2, "--template-date",
    "2026-01-02",
)  # fmt: skip
SHORT = (
    "--steps", 4, "--batch-size", 4, "--micro-batch-size", 2, "--rank", 4, "--alpha", 8,
    "--learning-rate", 1e-4, "--template-date", "2026-01-02", "--max-seq-length", 128,
    "--valid-data", "data/valid.jsonl", "--data", "data/pairs.jsonl",
)  # fmt: skip
# Base and adapters of the f315083 runs in start/.
BASE, FINISHED, KILLED = "base", "finished", "killed"
# By which a step takes the pairs that f315083 took; its killed run goes on by them unasked.
OLD_RULES = 2
# The runs whose files and tensors are compared; of the others, only the token ids.
RUNS = ("lora", "dora", "full", "lora-4bit", "continued", "resumed")
# Whose exports are compared by names and shapes alone.
FAMILIES = ("qwen3_moe", "mixtral", "phi3")
# The names by which OpenBLAS calls the kernels that OPENBLAS_CORETYPE=Prescott chooses.
PRESCOTT = ("Prescott", "Katmai")
DEMO_BASE = "demo-base-0.1.2-1"
KEYED = ("tokenizers", "transformers", "jinja2")  # their versions are part of a cache key
BIT_FOR_BIT = ("mlx", "mlx-lm", "scipy-openblas32")  # other versions may round otherwise


def call(*arguments: object, save: str = "") -> Any:
    """Run `orpo-mlx ARGUMENTS`; return, and keep as json/<save>.json, what --json prints."""
    out = io.StringIO()
    with redirect_stdout(out):
        status = orpo_mlx_command([str(argument) for argument in arguments])
    assert status == 0, f"orpo-mlx {' '.join(map(str, arguments))}: status {status}"
    if not save:
        return None
    Path("json").mkdir(exist_ok=True)
    Path(f"json/{save}.json").write_text(out.getvalue(), encoding="utf-8")
    return json.loads(out.getvalue())


def train(output: str, *arguments: object, save: str = "") -> None:
    """A run into runs/<output>."""
    json_flag = ("--json",) if save else ()
    call("train", "--output", f"runs/{output}", *arguments, *json_flag, save=save)


def prepare() -> dict[str, Any]:
    """Load MLX on the CPU, whatever device there is; return what the bits depend on."""
    _ = orpo_mlx.TrainConfig  # the package readies the machine before mlx is imported
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    os.environ["ORPO_MLX_CACHE"] = str(Path("cache").resolve())
    return {
        "machine": platform.machine(),
        "kernel": blas_kernel(),
        "versions": {name: version_of(name) for name in BIT_FOR_BIT},
    }


def version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def blas_kernel() -> str:
    """The kernels of the OpenBLAS that MLX calls, by its own name; "" where it calls another."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text(encoding="utf-8").splitlines() if maps.is_file() else []
    for path in sorted({line.split()[-1] for line in lines if "openblas" in line}):
        library = ctypes.CDLL(path)
        for name in ("scipy_openblas_get_corename", "openblas_get_corename"):
            # MLX finds the plain name only in the copy that orpo_mlx made for it.
            if hasattr(library, "cblas_sgemm") and hasattr(library, name):
                function = getattr(library, name)
                function.restype = ctypes.c_char_p
                return str(function().decode())
    return ""


def make_tokens() -> None:
    """Token ids of every format, of two templates, cut and uncut, by way of the cache."""
    before = entry_files()
    sources = [word for name in FORMATS for word in ("--data", f"data/{name}")]
    once = ("--model", BASE, *ONCE)
    train("formats", *once, *sources)
    # An entry made again is another file; one that was not used has a second one next to it.
    after = entry_files()
    kept = [name for name, state in before.items() if state == after.get(name)]
    entries = {"kept": kept, "all": sorted(after)}
    Path("entries.json").write_text(json.dumps(entries), encoding="utf-8")
    both = ("--data", "data/tools.jsonl", "--data", "data/thinking.jsonl")
    for mode in ("auto", "on", "off"):
        train(f"thinking-{mode}", *once, *both, *RICH, "--thinking", mode)
    cut = ("--data", "data/messages.jsonl", "--data", "data/prompt.jsonl")
    train("cut", *once, *cut, "--max-seq-length", 24, "--max-prompt-length", 10)
    train("cut-rich", *once, "--data", "data/tools.jsonl", *RICH, "--max-seq-length", 100)


def record_keys() -> None:
    """Keep, as keys.json, what f315083 called each entry of the token cache; its FORMAT was 1."""
    from orpo_mlx.data.tokens import cache, pipeline

    key_of, known = cache.key_of, dict[str, str]()

    def recorded_key_of(*facts: Any) -> str:
        key = key_of(*facts)
        with patch.object(cache, "FORMAT", 1):
            known[key] = key_of(*facts)
        Path("keys.json").write_text(json.dumps(known), encoding="utf-8")
        return key

    pipeline.key_of = recorded_key_of


def entry_files() -> dict[str, list[int]]:
    """The Arrow files of the token cache: which file each is, and when it was written."""
    files = sorted(Path("cache/tokens").glob("*/pairs.arrow"))
    return {file.parent.name: [file.stat().st_ino, file.stat().st_mtime_ns] for file in files}


def look_at_data() -> None:
    """The `data` commands."""
    from tests import tiny  # imports mlx

    show = ("data", "preview", "-n", 50, "--json")
    for name in FORMATS:
        converted = f"converted/{name.replace('.', '-')}.jsonl"
        call("data", "convert", f"data/{name}", "--output", converted)
    pairs = {
        name: [[p.prompt, p.chosen, p.rejected] for p in orpo_mlx.load_pairs(f"data/{name}")]
        for name in FORMATS
    }
    Path("pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    renamed = ("data/renamed.jsonl", "--columns", "prompt=query,chosen=good,rejected=bad")
    call(*show, *renamed, save="preview")
    call(*show, *renamed, "--model", BASE, save="preview-model-renamed")
    many = ("data/ranked.jsonl", "--min-margin", 1, "--model", BASE)
    call(*show, *many, save="preview-model-ranked")
    tools = ("data/tools.jsonl", "--model", BASE, *RICH, "--template-date", "2026-01-02")
    call(*show, *tools, save="preview-model-tools")
    cut = ("--model", BASE, "--max-seq-length", 24, "--max-prompt-length", 10)
    call(*show, "data/messages.jsonl", *cut, save="preview-model-cut")
    call("data", "stats", "data/pairs.jsonl", "--json", save="stats")
    call("data", "stats", "data/pairs.jsonl", "--model", BASE, "--json", save="stats-model")
    many = str(tiny.save_pairs(Path("many.jsonl"), 120))
    call("data", "check", many, "data/pairs.jsonl", "--json", save="check")
    call(
        "data", "check", "data/pairs.jsonl", "--model", BASE, "-n", 4, "--json", save="check-model"
    )
    split = ("data", "split", "data/pairs.jsonl", "--output", "split", "--json")
    call(*split, "--valid-fraction", 0.25, "--test-fraction", 0.25, save="split")
    convert = ("data", "convert", "data/strength.jsonl", "--output", "pairs.parquet", "--json")
    call(*convert, save="data-convert")


def train_new_runs() -> None:
    """Short runs of every kind of adapter, and of a quantized base."""
    train("lora", "--model", BASE, *SHORT, "--dropout", 0.1, "--save-every", 2, save="train")
    train("dora", "--model", BASE, *SHORT, "--fine-tune-type", "dora", "--num-layers", 1)
    full = ("--fine-tune-type", "full", "--num-layers", 1)
    train("full", "--model", BASE, *SHORT, *full)
    train("lora-4bit", "--model", "base-4bit", *SHORT, "--num-layers", 1)
    train("continued", "--model", BASE, *SHORT, "--adapter", FINISHED)


def go_on_with_old_runs() -> None:
    """The runs of f315083: the killed one to its end; the finished one measured and answering."""
    shutil.copytree(KILLED, "runs/resumed")
    call("train", "--resume", "--output", "runs/resumed", "--json", save="resume")
    both = ("--model", BASE, "--adapter", FINISHED)
    call("evaluate", *both, "--data", "data/valid.jsonl", "--json", save="evaluate")
    prompt = ("--prompt", "my bill is lost", "--max-tokens", 6)
    call("generate", *both, *prompt, "--json", save="generate")
    push = ("push", FINISHED, "--repo", "ann/polite", "--dry-run", "--json")
    call(*push, "--samples", 10, "--max-tokens", 4, save="push-adapter")


def fuse_and_export() -> None:
    """The finished run of f315083 in every layout."""
    fuse = ("fuse", "--adapter", FINISHED, "--output")
    call(*fuse, "out/fused", "--json", save="fuse")
    four_bits = ("--model", "base-4bit")
    call(*fuse, "out/fused-4bit", *four_bits, "--json", save="fuse-4bit")
    call(*fuse, "out/fused-dequantized", *four_bits, "--dequantize", "--no-verify")
    two = ("--adapter", f"{FINISHED}:0.5", "--adapter", "runs/resumed:0.25")
    call("fuse", *two, "--model", BASE, "--output", "out/fused-two", "--no-verify")
    call("export", FINISHED, "--to", "peft", "--output", "out/peft", "--json", save="export-peft")
    call("export", "runs/dora", "--to", "peft", "--output", "out/peft-dora")
    call("import", "out/peft", "--model", BASE, "--output", "out/back", "--json", save="import")
    gguf = ("export", FINISHED, "--to", "gguf", "--output")
    call(*gguf, "out/gguf", "--json", save="export-gguf")
    call(*gguf, "out/gguf-fused", "--fused", "--outtype", "f32", "--json", save="export-gguf-fused")
    call(*gguf, "out/gguf-base", "--with-base", "--outtype", "q8_0")


def export_families() -> None:
    """Names and shapes of models with experts and with joined layers."""
    from tests import tiny  # imports mlx

    for family in FAMILIES:
        base = tiny.save_base(Path(f"families/{family}"), family)
        train(family, "--model", base, "--data", "data/prompt.jsonl", *ONCE)
        call("export", f"runs/{family}", "--to", "peft", "--output", f"families/{family}-peft")
    gguf = ("--to", "gguf", "--outtype", "f16", "--output", "families/qwen3_moe-gguf")
    call("export", "runs/qwen3_moe", *gguf)
    call("export", "runs/qwen3_moe", *gguf[:-1], "families/qwen3_moe-whole", "--with-base")


def convert() -> None:
    """A model to 4 bits and back, and from GGUF."""
    bits = ("--bits", 4, "--group-size", 32, "--report", "--json")
    call("convert", BASE, "--output", "out/4bit", *bits, save="convert")
    call("convert", "out/4bit", "--output", "out/plain", "--dequantize")
    call("convert", "out/gguf-fused/model.gguf", "--output", "out/from-gguf")


def push_and_pull() -> None:
    """What goes to the Hub and comes from it; HF_ENDPOINT is the tests' own."""
    small = ("--samples", 0, "--json")
    pushed = call("push", FINISHED, "--repo", "ann/polite", "--layout", "both", *small, save="push")
    assert pushed["commit"]
    dry = ("--repo", "ann/x", "--dry-run", "--json")
    call("push", "out/fused", *dry, save="push-model")
    call("push", "data/pairs.jsonl", *dry, save="push-pairs")
    call("pull", "ann/polite", "--output", "out/pulled", "--json", save="pull")


def show_demo() -> None:
    """The demo, on the tiny base, which the cache holds under the name of the demo's own.

    There every token of several letters ends an answer: a minute's work takes seconds.
    """
    # Of its own: the token ids of the bundled pairs are kept under where the package lies.
    os.environ["ORPO_MLX_CACHE"] = str(Path("demo-cache").resolve())
    folder = Path("demo-cache") / DEMO_BASE
    shutil.copytree(BASE, folder)
    (folder / "generation_config.json").write_text("{}", encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["eos_token_id"] = [2, *range(3 + 256, config["vocab_size"])]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    call("demo", "--output", "runs/demo", "--json", save="demo")


def main() -> None:
    versions: Mapping[str, str] = json.loads(Path("versions.json").read_text(encoding="utf-8"))
    facts = prepare()
    record_keys()
    real = metadata.version
    with patch.object(metadata, "version", lambda name: versions.get(name) or real(name)):
        make_tokens()
    look_at_data()
    with patch("orpo_mlx.training.loop.RULES", OLD_RULES):
        train_new_runs()
    go_on_with_old_runs()
    fuse_and_export()
    export_families()
    convert()
    push_and_pull()
    show_demo()
    Path("facts.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main()
