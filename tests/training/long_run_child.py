"""A long run with every sink, in a process of its own: prints what it holds, as JSON.

python -m tests.training.long_run_child SETTINGS_JSON EVERY: at each EVERY steps, and at the end.
"""

import json
import os
import sys
from pathlib import Path

from orpo_mlx import backend
from orpo_mlx.config.train import TrainConfig
from orpo_mlx.events import Event, Finished, Notice, StepDone
from orpo_mlx.sinks.attach import sinks_for


def held(step: int) -> dict[str, int]:
    """Memory that is this process's own, open files, and children that nobody has waited for."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    (anonymous,) = [int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:")]
    files = sum(1 for _ in Path("/proc/self/fd").iterdir())
    return {"step": step, "anonymous_kb": anonymous, "files": files, "zombies": zombies()}


def zombies() -> int:
    count = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = file.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has ended
            continue
        count += state == "Z" and int(parent) == os.getpid()
    return count


def main() -> None:
    backend.prepare()
    from orpo_mlx.training.loop import train

    config, every = TrainConfig.model_validate_json(sys.argv[1]), int(sys.argv[2])
    measured, notices = list[dict[str, int]](), list[str]()

    def watch(event: Event) -> None:
        if isinstance(event, Notice) and event.warning:
            notices.append(event.text)
        if isinstance(event, Finished) or (isinstance(event, StepDone) and event.step % every == 0):
            measured.append(held(event.step))

    with sinks_for(config, watch) as sinks:
        train(config, [*sinks, watch])
    sys.stdout.write(json.dumps({"measured": measured, "notices": notices}) + "\n")


if __name__ == "__main__":
    main()
