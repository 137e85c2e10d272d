"""One round on the demo base, judged by a rule through the page: the verdict sees what was taught.

The rule is "has numbered steps": the base keeps it in 39 % of 96 answers, 3 to each of the first 32
prompts (at most 96 tokens, temperature 0.8). Whole rounds with three seeds ended with the adapter
preferred in 21 of 21, 18 of 19 and 17 of 17 decided prompts: this is not a coin's work.
"""

import json
import sys
from pathlib import Path

import pytest

from orpo_mlx.demo.base import fetch_demo_base
from orpo_mlx.judging.answers import SampledAnswer, load_answers
from orpo_mlx.review.forgetting.paragraphs import load_paragraphs
from tests.loops.judge_by_rule import has_numbered_steps, run_judged

PROMPTS = Path(__file__).with_name("how_to.txt")
# The demo's, on the last 8 of 30 blocks, which takes half of the time.
TRAIN = """
steps: 30
batch_size: 2
learning_rate: 2.0e-3
beta: 0.5
rank: 8
alpha: 16
valid_fraction: 0
eval_every: 0
num_layers: 8
"""


def share_of(answers: list[SampledAnswer]) -> float:
    return sum(has_numbered_steps(answer.text) for answer in answers) / len(answers)


@pytest.mark.touchy
@pytest.mark.long
def test_a_round_teaches_what_a_blind_judge_prefers(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text(TRAIN)
    (tmp_path / "forget.txt").write_text("\n\n".join(load_paragraphs(None)[:4]))
    arguments = [
        "loop",
        "rule",
        "--model",
        fetch_demo_base(),
        "--prompts",
        PROMPTS,
        "--max-tokens",
        96,
    ]
    arguments += ["--pair-prompts", 24, "--verdict-prompts", 32, "--train-config", "train.yaml"]
    arguments += ["--forget-text", "forget.txt"]
    command = [sys.executable, "-m", "orpo_mlx", *map(str, arguments), "--json"]
    done = run_judged(command, tmp_path, has_numbered_steps)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "loops/rule/round-1"
    sampled = load_answers(folder / "pairs-answers.jsonl")
    assert len(sampled) == 96
    assert 0.1 <= share_of(sampled) <= 0.6
    verdict = json.loads((folder / "verdict/verdict.json").read_text())
    assert verdict["names"] == ["the adapter", "the base"]
    assert (verdict["prompts"], verdict["missing"], verdict["contradicted"]) == (32, 0, 0)
    assert (verdict["repeats"], verdict["unlike"]) == (8, {})
    assert verdict["interval"][0] > 0.5 and verdict["claimed"]
    # The adapter's answers to prompts of the other side keep the rule more often, counted here.
    answers = load_answers(folder / "verdict-answers.jsonl")
    adapter, base = ([a for a in answers if (a.source.adapter is None) == b] for b in (False, True))
    assert len(adapter) == len(base) == 32
    assert share_of(adapter) > share_of(base)
    assert not {a.prompt_id for a in answers} & {a.prompt_id for a in sampled}
    assert "forget.txt" in verdict["forgotten"]["text"]
    facts = json.loads(done.stdout)
    assert facts["sentences"][0] == verdict["sentences"][0]
    assert (tmp_path / facts["page"]).is_file()
