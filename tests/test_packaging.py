"""The package as people get it: built, installed elsewhere, and without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.touchy

ROOT = Path(__file__).parents[1]
# The demo's parts, small: bundled pairs, preset, base, one step, one answer.
PARTS = """
import json
from pathlib import Path
import orpo_mlx
assert "site-packages" in orpo_mlx.__file__, orpo_mlx.__file__
from orpo_mlx import backend
slow = backend.prepare()
from orpo_mlx.config.train import DemoConfig
from orpo_mlx.demo.base import fetch_demo_base
from orpo_mlx.demo import before_after as demo
from orpo_mlx.training.loop import train
config = demo.train_config(DemoConfig(output=Path("run")), fetch_demo_base())
small = {"steps": 1, "batch_size": 1, "micro_batch_size": 1, "eval_pairs": 1}
result = train(config.model_copy(update=small))
chat = demo.open_chat(demo.GenerateConfig(model=config.model, adapter=result.output, prompt=""))
(answer,) = demo.answers(chat, ["My parcel is late."])
splits = ("train", "valid", "test")
pairs = {s: len(orpo_mlx.load_pairs(demo.SAMPLES / f"{s}.jsonl")) for s in splits}
print(json.dumps({"slow": slow, "step": result.step, "pairs": pairs, "answer": answer.text}))
"""


def run(*command: object, cwd: Path) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_the_wheel_runs_the_demos_parts_elsewhere_without_torch(tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT,
        cwd=tmp_path)  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    run(sys.executable, "-m", "venv", "fresh", cwd=tmp_path)
    python = tmp_path / "fresh" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{wheel}[cpu]",
        cwd=tmp_path)  # fmt: skip
    installed = json.loads(run(python, "-m", "pip", "list", "--format", "json", cwd=tmp_path))
    names = {package["name"].lower() for package in installed}
    assert {"orpo-mlx", "mlx", "mlx-lm"} <= names
    assert not names & {"torch", "trl", "peft", "datasets"}
    facts = json.loads(run(python, "-c", PARTS, cwd=tmp_path).splitlines()[-1])
    assert facts["slow"] is None
    assert facts["step"] == 1
    assert facts["pairs"] == {"train": 240, "valid": 40, "test": 40}
    assert facts["answer"].strip()
