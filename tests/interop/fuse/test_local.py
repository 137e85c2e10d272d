"""scripts/fuse_local_adapters.py: every adapter in one go, as a person runs it."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx_lm
import pytest

from orpo_mlx.model.adapters import save_adapter
from tests import tiny
from tests.interop.adapted import adapted

pytestmark = pytest.mark.touchy

SCRIPT = Path(__file__).parents[3] / "scripts" / "fuse_local_adapters.py"


class Done(NamedTuple):
    status: int
    out: str
    err: str


class Script:
    """The script's own function, in a folder."""

    def __init__(
        self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.chdir(folder)
        self.main = runpy.run_path(str(SCRIPT))["main"]
        self.capsys = capsys

    def __call__(self, *flags: str) -> Done:
        status = self.main([*flags])
        return Done(status, *self.capsys.readouterr())


@pytest.fixture
def run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Script:
    return Script(tmp_path, capsys, monkeypatch)


def test_it_goes_on_past_one_that_fails_and_leaves_out_what_has_no_base(
    llama: Path, tmp_path: Path, run: Script
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
    done = run()
    assert done.status == 1
    rows = {
        c[1].strip(): c[2].strip()
        for line in done.out.splitlines()
        if len(c := line.replace("┃", "│").split("│")) > 3
    }
    rows.pop("", None)  # a long text goes on in the next line
    assert rows == {
        "adapter": "outcome",
        "damaged": "failed",
        "right": "fused",
        "strange": "left out",
    }
    assert "damaged: " in done.err
    assert [f.name for f in (tmp_path / "fused").iterdir()] == ["right"]
    mlx_lm.load(str(tmp_path / "fused" / "right"))


def test_the_revision_that_an_adapter_names_is_taken(
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
    done = subprocess.run([sys.executable, str(SCRIPT)], cwd=tmp_path, check=False)
    assert done.returncode == 0
    kept = "model.layers.0.mlp.up_proj.weight"
    fused: Any = mx.load(str(tmp_path / "fused" / "mine" / "model.safetensors"))
    theirs: Any = mx.load(str(llama / "model.safetensors"))
    assert mx.array_equal(fused[kept], theirs[kept])


def test_all_well_is_status_0_and_nothing_there_is_an_error(
    llama: Path, tmp_path: Path, run: Script
) -> None:
    empty = run()
    assert (empty.status, empty.out) == (1, "")
    assert empty.err == "Error: adapters holds no adapter: no */adapters.safetensors there.\n"
    (tmp_path / "mine").mkdir()
    adapted(llama, tmp_path / "mine" / "right", ["q_proj"])
    flags = ("--adapters", "mine", "--output", "out")
    assert run(*flags).status == 0
    again = run(*flags)
    assert again.status == 0 and "left out" in again.out
    assert run(*flags, "--overwrite").status == 0
