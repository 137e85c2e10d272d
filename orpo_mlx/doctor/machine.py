"""The machine as MLX sees it: device, memory, environment, and how fast it multiplies."""

import os
import platform
import shutil
import time

import mlx.core as mx
import numpy as np

from orpo_mlx import backend
from orpo_mlx.doctor.install import installed
from orpo_mlx.doctor.verdict import FAILED, OK, SKIPPED, Check
from orpo_mlx.install_advice import pip_install

# The demo, a 135M model, needs 3 GB.
LEAST_BYTES = 3e9
RELAXED = "AGX_RELAX_CDM_CTXSTORE_TIMEOUT"
# Variables of MLX that switch kernels off.
FALLBACKS = {
    "MLX_SDPA_VJP_FALLBACK": "attention's gradient takes memory by the square of the length",
    "GATED_DELTA_VJP_FALLBACK": "gradients of gated delta layers loop over tokens",
}
CUDA = ("mlx-cuda-12", "mlx-cuda-13")
# MLX's own BLAS is 20 to 40 times slower than OpenBLAS, which numpy brings with it.
LEAST_SHARE = 0.25
SLOW_BLAS = "{command}, and make sure that files can be created in {folder}"


def check_device() -> Check:
    """What MLX computes on, and whether that is the GPU where there should be one."""
    on_cpu = backend.is_cpu()
    kind = "CPU" if on_cpu else "Metal" if mx.metal.is_available() else "CUDA"
    info = mx.device_info()
    facts = ", ".join(str(info[key]) for key in ("device_name", "architecture") if info.get(key))
    detail = f"{kind} ({facts})"
    if not on_cpu:
        return Check("device", OK, detail)
    if platform.system() == "Darwin":
        remedy = "Run it on the Mac itself, not in a virtual machine or a container"
        return Check("device", FAILED, f"{detail}: no Metal device is found", remedy)
    if any(installed(name) for name in CUDA):
        remedy = "See whether nvidia-smi lists the GPU; CUDA 13 needs driver 580 or later"
        return Check("device", FAILED, f"{detail}: MLX's CUDA backend finds no GPU", remedy)
    if shutil.which("nvidia-smi"):
        detail += f"; for the NVIDIA GPU: {pip_install('cuda')}"
    return Check("device", OK, detail)


def check_memory() -> Check:
    """How much memory there is, and on Metal how much of it the GPU should take."""
    info = mx.device_info()
    total = backend.device_bytes() or backend.total_bytes()
    detail = f"{total / 1e9:.1f} GB"
    if recommended := info.get("max_recommended_working_set_size"):
        detail += f", of which macOS lets the GPU take {int(recommended) / 1e9:.1f} GB"
    if total < LEAST_BYTES:
        detail += f": less than the {LEAST_BYTES / 1e9:.0f} GB that even the demo needs"
        return Check("memory", FAILED, detail, "Use a machine with more memory")
    return Check("memory", OK, detail)


def check_environment() -> Check:
    """The variable that keeps macOS from ending long Metal kernels, set before mlx is imported."""
    name = "Metal environment"
    if not mx.metal.is_available():
        return Check(name, SKIPPED, "no Metal here")
    value = os.environ.get(RELAXED)
    if value == "1":
        switched = {n: why for n, why in FALLBACKS.items() if n in os.environ}
        details = [f"{n}={os.environ[n]}: {why}" for n, why in switched.items()]
        return Check(name, OK, "; ".join([f"{RELAXED}=1", *details]))
    remedy = f"Remove {RELAXED} from your environment (orpo-mlx sets it), or set it to 1"
    return Check(name, FAILED, f"{RELAXED} is {value}: macOS may end long kernels", remedy)


def check_matmul() -> Check:
    """The float32 matmul rate; on the CPU against numpy's, which shows a slow BLAS."""
    if not backend.is_cpu():
        rate = backend.matmul_gflops(4096)
        return Check("matmul", OK, f"float32, {rate:,.0f} GFLOP/s")
    slow = backend.prepare()
    remedy = SLOW_BLAS.format(command=pip_install("cpu"), folder=backend.cache_folder())
    rate, reference = backend.matmul_gflops(), _numpy_gflops()
    threads = " on one thread" if os.environ.get("OPENBLAS_NUM_THREADS") == "1" else ""
    detail = f"float32, {rate:,.0f} GFLOP/s{threads} (numpy: {reference:,.0f})"
    if slow:
        return Check("matmul", FAILED, f"{detail}. {slow.partition(' Install')[0]}", remedy)
    if rate < LEAST_SHARE * reference:
        detail += f": under {LEAST_SHARE:.0%} of numpy's rate, so MLX does not use the fast BLAS"
        return Check("matmul", FAILED, detail, remedy)
    return Check("matmul", OK, detail)


def _numpy_gflops(size: int = 1024, repeats: int = 3) -> float:
    a = np.ones((size, size), dtype=np.float32)
    best = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        a @ a
        best = max(best, 2 * size**3 / (time.perf_counter() - start) / 1e9)
    return best
