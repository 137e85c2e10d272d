"""scripts/fuse_local_adapters.py: every adapter in one go, as a person runs it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest

from orpo_mlx.model.adapters import save_adapter
from tests import tiny
from tests.interop.adapted import adapted

pytestmark = pytest.mark.touchy

SCRIPT = Path(__file__).parents[3] / "scripts" / "fuse_local_adapters.py"


def run(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *flags],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_goes_on_past_one_that_fails_and_leaves_out_what_has_no_base(
    llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "adapters").mkdir()
    base = adapted(llama, tmp_path / "adapters" / "right", ["q_proj"])
    shutil.copytree(tmp_path / "adapters" / "right", tmp_path / "adapters" / "damaged")
    (tmp_path / "adapters" / "damaged" / "adapters.safetensors").write_bytes(b"?")
    config = {
        "fine_tune_type": "lora",
        "num_layers": 2,
        "model": "nobody/knows-it",
        "lora_parameters": {"rank": 4, "scale": 1.0, "dropout": 0.0},
    }
    weights = {n: v for n, v in base.model.layers[1].self_attn.q_proj.items() if "lora" in n}
    named = {f"model.layers.1.self_attn.q_proj.{n}": v for n, v in weights.items()}
    save_adapter(tmp_path / "adapters" / "strange", named, config)
    (tmp_path / "adapters" / "README.md").write_text("no adapter")
    done = run(tmp_path)
    assert done.returncode == 1
    rows = {
        c[1].strip(): c[2].strip()
        for line in done.stdout.splitlines()
        if len(c := line.replace("┃", "│").split("│")) > 3
    }
    rows.pop("", None)  # a long text goes on in the next line
    assert rows == {
        "adapter": "outcome",
        "damaged": "failed",
        "right": "fused",
        "strange": "left out",
    }
    assert "damaged: " in done.stderr
    assert [f.name for f in (tmp_path / "fused").iterdir()] == ["right"]
    mlx_lm.load(str(tmp_path / "fused" / "right"))


def test_the_revision_that_an_adapter_names_is_taken_and_what_is_there_is_left(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "hub" / "models--user--base"
    other = tiny.save_base(tmp_path / "other", seed=5)
    for commit, folder, ref in (("1" * 40, other, "main"), ("2" * 40, llama, "v2")):
        shutil.copytree(folder, cache / "snapshots" / commit)
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs" / ref).write_text(commit)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "adapters").mkdir()
    adapted(llama, tmp_path / "adapters" / "mine", ["q_proj"])
    file = tmp_path / "adapters" / "mine" / "adapter_config.json"
    config = json.loads(file.read_text()) | {"model": "user/base", "revision": "v2"}
    file.write_text(json.dumps(config))
    assert run(tmp_path).returncode == 0
    kept = "model.layers.0.mlp.up_proj.weight"
    fused: Any = mx.load(str(tmp_path / "fused" / "mine" / "model.safetensors"))
    theirs: Any = mx.load(str(llama / "model.safetensors"))
    assert mx.array_equal(fused[kept], theirs[kept])
    again = run(tmp_path)
    assert again.returncode == 0 and "left out" in again.stdout


def test_all_well_is_status_0_and_nothing_there_is_an_error(llama: Path, tmp_path: Path) -> None:
    empty = run(tmp_path)
    assert (empty.returncode, empty.stdout) == (1, "")
    assert empty.stderr == "Error: adapters holds no adapter: no */adapters.safetensors there.\n"
    (tmp_path / "mine").mkdir()
    adapted(llama, tmp_path / "mine" / "right", ["q_proj"])
    flags = ("--adapters", "mine", "--output", "out")
    assert run(tmp_path, *flags).returncode == 0
    again = run(tmp_path, *flags)
    assert again.returncode == 0 and "left out" in again.stdout
    assert run(tmp_path, *flags, "--overwrite").returncode == 0
