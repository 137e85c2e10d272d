"""Fuses in a process of its own and prints the memory that it took: run by test_memory.py."""

import json
import sys
from pathlib import Path


def highest_bytes() -> int:
    """The most that the process ever had in memory."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def main(base: str, run: str, output: str, flags: list[str]) -> None:
    from orpo_mlx import backend

    backend.prepare()
    import mlx.core as mx

    from orpo_mlx.config.interop import FuseConfig
    from orpo_mlx.events import Notice
    from orpo_mlx.interop.fuse import merge as fusing
    from orpo_mlx.model.adapters import read_adapter

    # What every call loads, before the large files are touched.
    mx.eval(mx.dequantize(*mx.quantize(mx.ones((64, 64)) @ mx.ones((64, 64)))))
    fusing.available_memory = lambda: 0  # a machine that cannot hold the model
    events = []
    before = highest_bytes()
    mx.reset_peak_memory()
    config = FuseConfig(
        model=base, adapter=[run], output=Path(output), dequantize="--dequantize" in flags
    )
    done = fusing.fuse(config, events.append)
    result = {
        "mlx": mx.get_peak_memory(),
        "process": highest_bytes() - before,
        "checked": done.checked,
        "notices": [e.text for e in events if isinstance(e, Notice)],
        "adapter": sum(v.nbytes for v in read_adapter(Path(run)).weights.values()),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:4], sys.argv[4:])
