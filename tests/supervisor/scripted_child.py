"""A training child that follows a script: each life is a list of actions, no life longer than it.

`python scripted_child.py FOLDER`: the lives are in FOLDER/lives.json; what each was handed over is
written to FOLDER/settings-N.json, by its number from 0.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

folder = Path(sys.argv[1])
handover = json.loads(os.environ.pop("ORPO_MLX_CHILD"))
number = len(list(folder.glob("settings-*.json")))
with os.fdopen(handover["settings"]) as file:
    (folder / f"settings-{number}.json").write_text(file.read())
received: list[int] = []


def send(line: bytes) -> None:
    while line:
        line = line[os.write(handover["events"], line) :]


def act(name: str, value: Any) -> None:
    if name == "send":
        send(json.dumps(value).encode() + b"\n")
    elif name == "bytes":
        send(value.encode())
    elif name == "print":
        sys.stdout.write(f"{value}\n")
        sys.stdout.flush()
    elif name == "write":
        path = Path(value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("model: base\ndata: [pairs.jsonl]\nrank: 4\nbatch_size: 4\nrules: 3\n")
    elif name == "kill":
        os.kill(os.getpid(), value)
    elif name == "signal parent":
        os.kill(os.getppid(), value)
    elif name == "await signals":
        while len(received) < value:
            time.sleep(0.01)
    elif name == "note signals":
        (folder / "signals.json").write_text(json.dumps(received))
    elif name == "group":
        (folder / "group.json").write_text(json.dumps([os.getpid(), os.getpgrp(), os.getppid()]))
    elif name == "stdin":
        (folder / "stdin.json").write_text(json.dumps(sys.stdin.read()))
    elif name == "hang":
        while True:
            signal.pause()
    elif name == "exit":
        os._exit(value)


for number_ in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number_, lambda number, frame: received.append(number))
for action in json.loads((folder / "lives.json").read_text())[number]:
    act(*action)
