"""Starts the processes of the proof: one thread, the Prescott kernels, the tests' own Hub."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.alarm import HANG_SECONDS
from tests.interop.hub.server import running_hub
from tests.interop.hub.state import TOKEN

HERE = Path(__file__).parent
START, RECORD = HERE / "start", HERE / "record"
ROOT = HERE.parents[1]
# Makes numpy unusable in every process with this on its PYTHONPATH: the doctor then ends early.
NO_NUMPY = """
import sys

class Broken:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "numpy":
            raise ImportError("broken")

sys.meta_path.insert(0, Broken())
"""


def run_child(
    arguments: Sequence[str], folder: Path, *, status: int = 0, **environment: str
) -> str:
    """Standard output of Python with these arguments, in `folder`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    path = os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH"))))
    fixed = {
        "OPENBLAS_CORETYPE": "Prescott",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": path,
        "HF_HOME": str(folder / "huggingface"),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=kept | fixed | environment,
        capture_output=True,
        text=True,
        timeout=2 * HANG_SECONDS,
    )
    assert done.returncode == status, done.stderr[-4000:]
    return done.stdout


def run_scenario(folder: Path) -> Path:
    """Run the scenario and a doctor in a new folder inside `folder`; return the new folder."""
    work = folder / "work"
    shutil.copytree(START, work)
    with running_hub(folder / "hub") as hub:
        online = {
            "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }
        run_child(["-m", "tests.proof.scenario"], work, **online)
    broken = folder / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(NO_NUMPY, encoding="utf-8")
    path = os.pathsep.join((str(broken), str(ROOT)))
    doctor = ["-m", "orpo_mlx", "doctor", "--json"]
    printed = run_child(doctor, work, status=1, PYTHONPATH=path)
    assert json.loads(printed)["checks"]
    (work / "json" / "doctor.json").write_text(printed, encoding="utf-8")
    return work
