"""--sample-prompts: answers next to the metrics, which change nothing in the run."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from orpo_mlx.config.train import GenerateConfig, TrainConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event, Progress, StopRun
from orpo_mlx.review.answers.generate import generate, open_chat
from orpo_mlx.training.loop import train
from orpo_mlx.training.samples import sampler
from orpo_mlx.training.samples.prompts import MOST_PROMPTS, load_sample_prompts
from tests import tiny
from tests.training.runs import rows, settings, stop_after, tensors

pytestmark = pytest.mark.usefixtures("eager")
TOKENS = 8
PROMPTS = ["my router is broken", "please help"]


@pytest.fixture
def config(
    llama: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TrainConfig:
    """Six steps with dropout; validations at 0, 3 and 6."""
    monkeypatch.setattr(sampler, "SAMPLE_TOKENS", TOKENS)
    valid = tiny.save_pairs(tmp_path / "valid.jsonl", 3, start=50)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n\n".join(PROMPTS) + "\n")
    return settings(
        llama, pairs_file, tmp_path / "run", valid_data=[str(valid)], sample_prompts=prompts,
        steps=6, eval_every=3, save_every=2, dropout=0.1,
    )  # fmt: skip


def samples(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]


@pytest.mark.touchy
def test_answers_are_those_of_generate_and_change_no_bit_of_the_run(config: TrainConfig) -> None:
    alone = {"sample_prompts": None, "output": config.output.with_name("alone")}
    mx.random.seed(5)
    train(config.model_copy(update=alone))
    drawn = mx.random.uniform().item()
    mx.random.seed(5)
    train(config)
    assert mx.random.uniform().item() == drawn
    assert tensors(config.output) == tensors(config.output.with_name("alone"))
    assert rows(config.output) == rows(config.output.with_name("alone"))
    answered = samples(config.output)
    assert [(row["step"], row["prompt"]) for row in answered] == [
        (step, prompt) for step in (0, 3, 6) for prompt in PROMPTS
    ]
    for prompt, row in zip(PROMPTS, answered[-2:], strict=True):
        settings = GenerateConfig(
            model=config.model, adapter=config.output, prompt=prompt, max_tokens=TOKENS
        )
        *_, last = generate(open_chat(settings), prompt, settings)
        assert (row["answer"], row["tokens"]) == (last.text, last.tokens)
        assert row["finish"] == ("stop" if last.ended else "length")


@pytest.mark.touchy
def test_a_resumed_run_has_the_answers_of_an_unbroken_one(config: TrainConfig) -> None:
    broken = config.model_copy(update={"output": config.output.with_name("broken")})
    train(config)
    train(broken, [stop_after(4)])
    with (broken.output / "samples.jsonl").open("a") as file:  # as after a kill past the checkpoint
        file.write(json.dumps({**samples(broken.output)[-1], "step": 5}) + '\n{"step": 6, "pro')
    train(broken.model_copy(update={"resume": True}))
    assert samples(broken.output) == samples(config.output)


@pytest.mark.touchy
def test_a_stop_among_the_answers_is_resumed_with_all_of_them(config: TrainConfig) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.stage == "Answering" and event.done == 1:
            raise StopRun

    assert train(config, [stop]).step == 0
    assert not (config.output / "samples.jsonl").exists()
    train(config.model_copy(update={"resume": True}), [stop_after(1)])
    assert [row["prompt"] for row in samples(config.output)] == PROMPTS


@pytest.mark.touchy
def test_without_held_out_pairs_prompts_are_answered_all_the_same(config: TrainConfig) -> None:
    train(config.model_copy(update={"valid_data": [], "steps": 2}))
    assert [row["step"] for row in samples(config.output)] == [0, 0, 2, 2]


def test_prompts_are_lines_or_json_lines(tmp_path: Path) -> None:
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]
    text, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    text.write_text('{"prompt": "not read"}\n\n  two\n', encoding="utf-8-sig")
    lines.write_text(
        '{"prompt": "one", "other": 1}\n' + json.dumps({"messages": conversation}) + "\n"
    )
    assert [p.prompt for p in load_sample_prompts(text)] == ['{"prompt": "not read"}', "  two"]
    assert load_sample_prompts(text)[1].messages == [{"role": "user", "content": "  two"}]
    assert [p.messages for p in load_sample_prompts(lines)] == [
        [{"role": "user", "content": "one"}],
        conversation,
    ]


def test_all_that_is_wrong_with_prompts_is_named(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(
        '{"prompt": ""}\nnot JSON\n{"text": "x"}\n[1]\n{"prompt": 3}\n'
        '{"messages": [{"role": "assistant", "content": "x"}]}\n{"prompt": "good"}\n'
    )
    with pytest.raises(OrpoError) as error:
        load_sample_prompts(file)
    assert [line.strip()[: len(str(file)) + 2] for line in str(error.value).splitlines()[1:]] == [
        f"{file}:{n}" for n in range(1, 7)
    ]
    for content, what in ((b"", "1 to 32 prompts, found 0"), (b"\xff", "not UTF-8 text")):
        file.write_bytes(content)
        with pytest.raises(OrpoError, match=what):
            load_sample_prompts(file)
    (many := tmp_path / "many.txt").write_text("x\n" * (MOST_PROMPTS + 1))
    with pytest.raises(OrpoError, match="found 33"):
        load_sample_prompts(many)
    with pytest.raises(OrpoError, match="cannot be read"):
        load_sample_prompts(tmp_path / "absent.txt")


@pytest.mark.touchy
def test_a_prompt_that_is_too_long_ends_a_run_before_it_writes(config: TrainConfig) -> None:
    assert config.sample_prompts
    config.sample_prompts.write_text("short\n" + "router " * 200 + "\n")
    with pytest.raises(OrpoError, match=r"longer than --max-seq-length 128:\n.*prompts.txt:2: "):
        train(config)
    assert not config.output.exists()
