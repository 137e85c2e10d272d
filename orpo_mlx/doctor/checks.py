"""The checks that need mlx, in order; as a program, their verdicts as JSON lines."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from orpo_mlx import backend
from orpo_mlx.doctor.install import import_remedy
from orpo_mlx.doctor.verdict import FAILED, OK, REPORT, Check

# Module and the distribution that it is in, in an order in which each needs only earlier ones.
PACKAGES = {
    "mlx.core": "mlx",
    "numpy": "numpy",
    "pyarrow": "pyarrow",
    "pydantic": "pydantic",
    "tokenizers": "tokenizers",
    "transformers": "transformers",
    "mlx_lm": "mlx-lm",
    "orpo_mlx.doctor.machine": "orpo-mlx",
    "orpo_mlx.doctor.kernels": "orpo-mlx",
    "orpo_mlx.doctor.paths": "orpo-mlx",
    "orpo_mlx.doctor.learning": "orpo-mlx",
}


def iter_checks(folder: Path) -> Iterator[tuple[str, Callable[[], Check]]]:
    """Each check's name and function; only the first may be run where a package is broken.

    `folder` is for what the checks write.
    """
    yield "imports", check_imports
    # A process that goes on after a crash has not run the first check.
    backend.prepare()
    from orpo_mlx.doctor import kernels, learning, machine, paths

    yield "device", machine.check_device
    yield "memory", machine.check_memory
    yield "Metal environment", machine.check_environment
    yield "matmul", machine.check_matmul
    yield "gated delta", kernels.check_gated_delta
    yield "log-probs", kernels.check_log_probs
    for kind in paths.KINDS:
        yield paths.fast_name(kind), partial(paths.check_fast_path, kind)
    for kind in paths.KINDS:
        yield paths.gpu_name(kind), partial(paths.check_gpu, kind)
    # What a run keeps of a base for the next one is of no use for this one.
    os.environ["ORPO_MLX_CACHE"] = str(folder / "cache")
    yield "training", partial(learning.check_training, folder)
    yield "adapter", partial(learning.check_adapter, folder)


def check_imports() -> Check:
    """Every package that is needed can be imported, and mlx computes."""
    for module, package in PACKAGES.items():
        try:
            backend.prepare()
            import_module(module)
        except Exception as error:
            why = _reason(error)
            detail = f"{module} cannot be imported ({why}); all other checks need it"
            return Check("imports", FAILED, detail, import_remedy(package, why))
    return Check("imports", OK, ", ".join(dict.fromkeys(PACKAGES.values())))


def run_check(name: str, check: Callable[[], Check]) -> Check:
    """The verdict of a check; an exception is a failure."""
    try:
        return check()
    except Exception as error:
        trace, where = error.__traceback__, ""
        while trace:
            code = trace.tb_frame.f_code
            where = f"{Path(code.co_filename).name}:{trace.tb_lineno}"
            trace = trace.tb_next
        return Check(name, FAILED, f"{_reason(error)} ({where})", REPORT)


def main(folder: Path, first: int) -> None:
    """Report the checks from number `first` on; those before it are left out."""
    # What libraries print must not mix with the verdicts.
    stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def log(event: dict[str, Any]) -> None:
        stdout.write(json.dumps(event) + "\n")
        stdout.flush()

    for number, (name, check) in enumerate(iter_checks(folder)):
        if number < first:
            continue
        log({"name": name, "number": number})
        verdict = run_check(name, check)
        log(verdict._asdict())
        if number == 0 and verdict.status == FAILED:
            return


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
