"""The demo: its settings are read, and it keeps what it promises (long)."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from orpo_mlx.config.train import DemoConfig
from orpo_mlx.data.pairs.load import load_pairs
from orpo_mlx.demo import before_after

ROOT = Path(__file__).parents[2]
COMMON_WORDS = """about after again been before could from have just keep keeps like need please
    really some still than that their them then there they this want what when where which will
    with would your were gets does help"""


def test_the_preset_is_a_valid_run_on_the_bundled_pairs(tmp_path: Path) -> None:
    config = before_after.train_config(DemoConfig(output=tmp_path / "run"), tmp_path)
    assert [len(load_pairs(config.data)), len(load_pairs(config.valid_data))] == [240, 40]
    prompts = before_after.load_preset()["prompts"]
    assert len(prompts) == 3 and max(prompts) < 40


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def runs(text: str, length: int) -> set[tuple[str, ...]]:
    facts = words(text)
    return {tuple(facts[i : i + length]) for i in range(len(facts) - length + 1)}


@pytest.mark.touchy
@pytest.mark.long
def test_the_demo_keeps_what_it_promises(tmp_path: Path) -> None:
    output = tmp_path / "run"
    command = ["make", "--silent", "demo", f"ARGS=--json --output {output}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    before, after = facts["before"], facts["after"]

    accuracy = "rewards/accuracies"
    assert after["brush_off"][accuracy] >= 0.9
    assert after["brush_off"][accuracy] > before["brush_off"][accuracy]
    assert after["all"]["logps/chosen"] > before["all"]["logps/chosen"]
    assert after["all"]["logps/rejected"] < before["all"]["logps/rejected"]
    assert (before["brush_off"]["pairs"], before["subtly_wrong"]["pairs"]) == (30, 10)

    trained = set().union(
        *(
            runs(str(p.chosen["content"]), 12)
            for p in load_pairs(before_after.SAMPLES / "train.jsonl")
        )
    )
    assert len(facts["answers"]) == 3
    for answer in facts["answers"]:
        assert answer["after_ended"] and answer["after_tokens"] <= 200
        assert not runs(answer["after"], 12) & trained
        asked = {w for w in words(answer["prompt"]) if len(w) > 3} - set(COMMON_WORDS.split())
        assert asked & set(words(answer["after"])), answer

    card = (before_after.SAMPLES / "README.md").read_text()
    cells = [f"{before[k][accuracy]:.0%}" for k in ("all", "brush_off", "subtly_wrong")]
    assert f"| the demo's base model | {' | '.join(cells)} |" in card
