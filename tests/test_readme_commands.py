"""Every command that the README shows works as it is shown, in that order and in one folder.

The Hub is the tests' own and has tiny models under the names shown; `make` and `pip` are left out.
A script judges, and types what is said in a chat.
"""

import gzip
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import tiny
from tests.interop.hub.server import running_hub
from tests.interop.hub.state import TOKEN, Hub
from tests.interop.hub.test_pull import fill
from tests.loops.judge_by_rule import run_judged
from tests.model.test_adapters import adapted
from tests.test_readme import README

pytestmark = [pytest.mark.long, pytest.mark.touchy]

ROOT = Path(__file__).parents[1]
LEFT_OUT = ("make", "pip")  # they install, and test_packaging.py and CI run them
WRITTEN = ("--output", "--html")  # options that name what a command writes
TYPED = "/both\nMy parcel is late.\n/1\n"  # into a chat
WIDE = {"intermediate_size": 128}  # convert quantizes rows in groups of 64


def commands(readme: str) -> list[str]:
    """The lines of the `sh` blocks, and modules that the text says to run, in their order."""
    pattern = r"^```sh\n(.*?)^```|`(python3 -m [^`]+)`"
    shown = re.finditer(pattern, readme, re.MULTILINE | re.DOTALL)
    text = "\n".join(match[1] or match[2] for match in shown)
    lines = re.sub(r"\\\n *", "", text).splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [x for x, w in zip(lines, words, strict=True) if w and w[0] not in LEFT_OUT]


class Shell(NamedTuple):
    """Where and with what a user types: `orpo-mlx` is this checkout's, in this environment."""

    folder: Path
    environment: dict[str, str]
    hub: Hub

    def failures(self, lines: list[str]) -> list[str]:
        """Of the commands, run one after another, those that do not work, and why."""
        return [failure for failure in map(self._failure, lines) if failure]

    def _failure(self, line: str) -> str:
        shell = ["bash", "-e", "-c", line]
        done = run_judged(shell, self.folder, longer_text, self.environment, TYPED)
        words = shlex.split(line, comments=True)
        written = [b for a, b in pairwise(words) if a in WRITTEN]
        missing = [name for name in written if not has_content(self.folder / name)]
        if not done.returncode and not missing:
            return ""
        return (
            f"$ {line}\nstatus {done.returncode}, empty or missing: {', '.join(missing) or 'none'}"
            f"\n{done.stderr[-2000:]}"
        )


def longer_text(text: str) -> bool:
    """What the judge of the README's commands prefers."""
    return len(text) > 25  # of BASE, whose answers have a dozen tokens or so


def has_content(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.is_file() and path.stat().st_size > 0


def save_files(folder: Path) -> None:
    """The user's own files and base, by the names that the README gives them."""
    tiny.save_pairs(folder / "pairs.jsonl", 24)
    tiny.save_pairs(folder / "held_out.jsonl", 8, start=24)
    tiny.save_pairs(folder / "test.jsonl", 8, start=32)
    tiny.save_ending_base(folder / "BASE")
    prompts = (tiny.toy_pair(number)["prompt"] for number in range(40, 54))
    (folder / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    with gzip.open(folder / "hh.jsonl.gz", "wt", encoding="utf-8") as file:
        for pair in map(tiny.toy_pair, range(8)):
            asked = f"\n\nHuman: {pair['prompt']}\n\nAssistant: "
            file.write(json.dumps({s: asked + pair[s] for s in ("chosen", "rejected")}) + "\n")


def fill_hub(hub: Hub, folder: Path) -> None:
    """The repos that the README names: two models, and an adapter of somebody's."""
    quantized = tiny.save_base(folder / "quantized", bits=4, **WIDE)
    plain = tiny.save_base(folder / "plain", **WIDE)
    adapted(plain, folder / "adapter", ["all-linear"])
    for name, source in (
        ("mlx-community/Llama-3.2-3B-Instruct-4bit", quantized),
        ("ORG/MODEL", plain),
        ("USER/NAME", folder / "adapter"),
    ):
        files = {file.name: file.read_bytes() for file in source.iterdir()}
        fill(hub, name, files, private=False)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    folder, home = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("home")
    save_files(folder)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "ORPO_"))}
    with running_hub(tmp_path_factory.mktemp("hub")) as hub:
        fill_hub(hub, tmp_path_factory.mktemp("repos"))
        own = {
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "PYTHONPATH": str(ROOT),
            "HOME": str(home),
            "HF_HOME": str(home / "huggingface"),
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        yield Shell(folder, kept | own, hub)


def test_every_command_works_as_shown(shell: Shell) -> None:
    lines = commands(README)
    assert {line.split()[0] for line in lines} == {"orpo-mlx", "mlx_lm.generate", "python3"}
    failures = shell.failures(lines)
    assert not failures, "\n\n".join(failures)
    assert shell.hub.refused == []


def test_commands_that_do_not_work_are_found(shell: Shell) -> None:
    results = {
        "orpo-mlx train --no-such-flag": r"status 1.*--no-such-flag: no such option",
        "orpo-mlx data stats no-such-file.jsonl": r"status 1.*no-such-file\.jsonl",
        "python3 -c 0 --output nowhere  # a comment": r"status 0, empty or missing: nowhere",
        "no-such-command": r"status 127.*command not found",
    }
    failures = shell.failures(["orpo-mlx --version", *results, "orpo-mlx --help"])
    assert len(failures) == len(results)
    for failure, (line, reads) in zip(failures, results.items(), strict=True):
        assert re.match(re.escape(f"$ {line}\n") + reads, failure, re.DOTALL), failure


def test_commands_are_found_in_blocks_and_in_the_text() -> None:
    readme = (
        "```sh\npip install .   # here\nmake demo\norpo-mlx a \\\n    --b 1  # why\n\n# more\n```\n"
        "`python3 -m a.b` says why, `orpo-mlx c` does not run.\n```python\nd\n```\n```sh\ne\n```\n"
    )
    assert commands(readme) == ["orpo-mlx a --b 1  # why", "python3 -m a.b", "e"]
