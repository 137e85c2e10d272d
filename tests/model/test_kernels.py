"""The comparisons of the families again, with two of OpenBLAS's kernels for this machine."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.families import FAST

# In the order of preference: a CPU's flags show which it can run.
KERNELS = {
    "Haswell": {"avx2", "fma"},
    "Sandybridge": {"avx"},
    "Nehalem": {"sse4_2"},
    "Prescott": set(),
}
REPORTED = {"Prescott": "Katmai"}  # one kernel under two names
SOME = FAST[3::4]  # gemma3_text and a recurrent one are among them
FILE = "tests/model/test_families.py"
# Runs pytest, then prints which kernels it used. The library keeps the prefix of its own names.
CHILD = """
import ctypes, sys
import pytest
from orpo_mlx import backend
status = pytest.main(sys.argv[1:])
name = ctypes.CDLL(str(backend.renamed_openblas())).scipy_openblas_get_corename
name.restype = ctypes.c_char_p
print("kernel:", name().decode())
sys.exit(status)
"""


def kernels() -> list[str]:
    """Two that this CPU has; none where MLX does not take OpenBLAS."""
    if sys.platform != "linux":
        return []
    if platform.machine() != "x86_64":
        return ["ARMV8", "CORTEXA57"]
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = set(next(line for line in lines if line.startswith("flags")).split())
    return [name for name, needed in KERNELS.items() if needed <= flags][:2]


@pytest.mark.long
@pytest.mark.parametrize("kernel", kernels())
def test_families_are_right_with_the_kernels(kernel: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, "-q", "-k", f"tree_equals and ({' or '.join(SOME)})", FILE],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OPENBLAS_CORETYPE": kernel},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    *_, summary, last = done.stdout.splitlines()
    assert last == f"kernel: {REPORTED.get(kernel, kernel)}"
    assert " passed" in summary
