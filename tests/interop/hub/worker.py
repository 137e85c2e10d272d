"""The command line in a process of its own, whose environment was set before any import.

Reads one JSON object a line from standard input and answers with one: `{"arguments": [...],
"token": ...}` runs `orpo-mlx` and tells status, both outputs and the seconds that were waited.
"""

import contextlib
import io
import json
import os
import sys
import time
import warnings
from typing import TextIO


def main() -> None:
    warnings.simplefilter("error")
    # huggingface_hub's own way of sending a file (lfs.py)
    warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)
    from orpo_mlx import backend

    backend.prepare()

    waited: list[float] = []
    time.sleep = waited.append  # waits are reported, not waited for
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with channel:
        serve(channel, waited)


def serve(channel: TextIO, waited: list[float]) -> None:
    from orpo_mlx.cli.main import run

    for line in sys.stdin:
        request = json.loads(line)
        os.environ.pop("HF_TOKEN", None)
        if request["token"]:
            os.environ["HF_TOKEN"] = request["token"]
        waited.clear()
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run(request["arguments"])
        result = {"status": status, "out": out.getvalue(), "err": err.getvalue(), "waited": waited}
        channel.write(json.dumps(result) + "\n")
        channel.flush()


if __name__ == "__main__":
    main()
