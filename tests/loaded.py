"""Which modules a fresh Python has loaded after some code."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

AFTER = "\nimport json, sys; print('LOADED' + json.dumps(list(sys.modules)))"


def loaded(code: str) -> set[str]:
    """The packages, with torch where it would be loaded."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code + AFTER],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    names = json.loads(done.stdout.rpartition("LOADED")[2])
    return {name.partition(".")[0] for name in names}


def assert_loads_none(code: str, heavy: set[str]) -> None:
    """The code loads none of these packages, each of which would be seen."""
    assert not loaded(code) & heavy
    assert all(map(find_spec, heavy))  # by these names
    first = min(heavy)
    assert loaded(f"import {first}\n{code}") & heavy >= {first}
