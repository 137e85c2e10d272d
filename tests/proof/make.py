"""Makes all that the proof holds again: `python -m tests.proof.make`.

What is committed was made by commit f315083, the last before the package was reorganized, and says
what that version does. Later versions are compared with it; make it again only to add to it, and
with that commit's package (PYTHONPATH) and the tests of commit 6191bba, on an x86 machine.
"""

import json
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

import orpo_mlx
from tests import tiny
from tests.proof import observed
from tests.proof.child import RECORD, START, run_child, run_scenario
from tests.proof.scenario import BASE, FINISHED, KEYED, KILLED

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
# With this seed, a rule that held out 0.2 of the draws rather than of the pairs would show itself.
SEED = 26
SETTINGS = {
    "model": BASE, "data": ["data/pairs.jsonl"], "valid_fraction": 0.2, "seed": SEED, "steps": 6,
    "save_every": 3, "batch_size": 4, "micro_batch_size": 2, "rank": 4, "alpha": 8, "dropout": 0.1,
    "learning_rate": 1e-3, "template_date": "2026-01-02", "max_seq_length": 128, "eval_every": 2,
}  # fmt: skip
# A run with the settings of its first argument, which ends as by a power cut after the step that
# its second names.
TRAIN = """
import json, os, sys
import orpo_mlx

def cut(event):
    if type(event).__name__ == "StepDone" and event.step == int(sys.argv[2]):
        os._exit(9)

orpo_mlx.train(orpo_mlx.TrainConfig(**json.loads(sys.argv[1])), [cut])
"""


def main() -> None:
    make_bases()
    with tempfile.TemporaryDirectory() as temporary:
        make_runs(Path(temporary))
    make_cache_entry()
    make_record()


def make_bases() -> None:
    """A tiny llama, whole and in 4 bits."""
    _ = orpo_mlx.TrainConfig  # before mlx, see orpo_mlx.backend
    for name, bits in ((BASE, None), ("base-4bit", 4)):
        shutil.rmtree(START / name, ignore_errors=True)
        tiny.save_base(START / name, bits=bits, **SMALL)


def make_runs(folder: Path) -> None:
    """A run that was killed between two checkpoints, and the same run to its end."""
    shutil.copytree(START, folder, dirs_exist_ok=True)
    for name in (KILLED, FINISHED):
        shutil.rmtree(START / name, ignore_errors=True)
        shutil.rmtree(folder / name, ignore_errors=True)
    for name, last, status in ((KILLED, 4, 9), (FINISHED, 7, 0)):
        settings = json.dumps(SETTINGS | {"output": name})
        run_child(["-c", TRAIN, settings, str(last)], folder, status=status)
    shutil.rmtree(folder / FINISHED / "checkpoints" / "step-0000003")
    for name in (KILLED, FINISHED):
        make_relative(folder / name, folder)
        shutil.copytree(folder / name, START / name)
    split = ["data", "split", "data/pairs.jsonl", "--output", "split", "--seed", str(SEED)]
    split += ["--valid-fraction", "0.2", "--test-fraction", "0"]
    run_child(["-m", "orpo_mlx", *split], folder)
    rows = (folder / "split" / "valid.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = sorted(json.loads(row)["prompt"][-1]["content"] for row in rows)
    observed.save_json(RECORD / "held_out.json", prompts)


def make_relative(run: Path, folder: Path) -> None:
    """Take the folder of this machine out of a run's files."""
    for file in [run / "config.yaml", *run.rglob("adapter_config.json")]:
        text = file.read_text(encoding="utf-8").replace(f"{folder.resolve()}/", "")
        assert str(folder) not in text
        file.write_text(text, encoding="utf-8")


def make_cache_entry() -> None:
    """The token ids of one source, in the folder that is named by their key."""
    versions = {name: metadata.version(name) for name in KEYED}
    observed.save_json(START / "versions.json", versions)
    shutil.rmtree(START / "cache", ignore_errors=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = run_scenario(Path(temporary))
        for name in observed.load_json(folder / "entries.json")["all"]:
            entry = folder / "cache" / "tokens" / name
            _, _, facts = (entry / "facts.json").read_text(encoding="utf-8").partition(" ")
            if json.loads(facts)["outcome"]["source"] == "data/prompt.jsonl":
                shutil.copytree(entry, START / "cache" / "tokens" / name)
                return
    raise AssertionError("no entry of data/prompt.jsonl")


def make_record() -> None:
    """What is observed, as JSON and as tensors."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = run_scenario(Path(temporary))
        observed.save_record(RECORD, observed.observe(folder))


if __name__ == "__main__":
    main()
