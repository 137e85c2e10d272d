"""`sample` from settings to a file of answers, against `evaluate`, and itself in other orders."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orpo_mlx.config.train import EvaluateConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event
from orpo_mlx.judging.answers import AnswerSource, SampledAnswer, load_answers
from orpo_mlx.sampling import sample as whole
from orpo_mlx.sampling import scoring
from orpo_mlx.sampling.cut import cut_sentence
from orpo_mlx.sampling.sample import sample
from orpo_mlx.training.evaluate import evaluate, evaluate_encoded
from tests import tiny
from tests.sampling.samples import DATE, assert_same_answers, config_of
from tests.sampling.talkers import THINKING, rows_of, save_talker
from tests.training.runs import notices

pytestmark = [pytest.mark.touchy, pytest.mark.usefixtures("eager")]


def test_a_row_has_all_that_is_known_of_an_answer(base: Path, tmp_path: Path) -> None:
    config = config_of(base, tmp_path, seed=5, temperature=0.7)
    sampled = sample(config)
    rows = rows_of(config.output)
    prompts = (tmp_path / "prompts.txt").read_text().splitlines()
    assert [(r["prompt"], r["number"]) for r in rows] == [(p, n) for p in prompts for n in range(4)]
    assert rows[0]["source"] == {
        "name": "base", "model": str(base), "temperature": 0.7, "max_tokens": 16, "thinking": True,
        "template_date": DATE, "template_args": {},
    }  # fmt: skip
    assert {row["seed"] for row in rows} == {5}
    assert len({row["id"] for row in rows}) == 12
    for row in rows:
        assert len(row["text"].split()) == row["tokens"]  # a word is a token
        assert "<|im_end|>" not in row["text"]
        assert row["finish"] == ("length" if row["tokens"] == 16 else "stop")
        assert ("logp" in row) == (row["finish"] == "stop")
    assert [source.answers for source in sampled.sources] == [load_answers(config.output)]
    assert sampled.prompts == 3


@pytest.mark.parametrize(
    ("changes", "as_drawn"),
    [({}, True), ({"in_bytes": True}, False), ({"template": THINKING, "closes": 2.5}, False)],
    ids=["words", "bytes", "thoughts"],
)
def test_log_probs_are_those_of_evaluate(
    tmp_path: Path, changes: dict[str, Any], as_drawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an answer is other tokens when it is read, it is computed; else it is as drawn."""
    base = save_talker(tmp_path / "base", **changes)
    config = config_of(base, tmp_path, thinking="on")
    computed = list[int]()

    def counted(path: Any, pairs: Any, **how: Any) -> Any:
        computed.append(len(pairs))
        return evaluate_encoded(path, pairs, **how)

    monkeypatch.setattr(scoring, "evaluate_encoded", counted)
    sample(config)
    assert bool(computed) == (not as_drawn)
    complete = [row for row in rows_of(config.output) if "logp" in row and row["text"].strip()]
    assert len(complete) > 4
    assert any(row["thought"] for row in complete) == ("closes" in changes)
    pairs = [
        {
            "prompt": row["prompt"],
            "chosen": [message_of(row["text"], row["thought"])],
            "rejected": [message_of("later", row["thought"])],
        }
        for row in complete
    ]
    (file := tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)) + "\n")
    measured = evaluate(
        EvaluateConfig(model=str(base), data=[str(file)], thinking="on", template_date=DATE)
    )
    expected = measured.base.values["logps/chosen"]
    # float32, and six digits are written
    np.testing.assert_allclose([r["logp"] for r in complete], expected, rtol=1e-5, atol=1e-5)


def message_of(text: str, thought: str) -> dict[str, str]:
    key = {"reasoning_content": thought} if thought else {}
    return {"role": "assistant", "content": text, **key}


@pytest.mark.parametrize("size", [1, 3])
def test_answers_are_the_same_in_any_batch(base: Path, tmp_path: Path, size: int) -> None:
    config = config_of(base, tmp_path)
    sample(config)
    other = config.model_copy(update={"output": tmp_path / "other.jsonl", "batch_size": size})
    sample(other)
    assert_same_answers(other.output, config.output)
    assert len({row["text"] for row in rows_of(config.output)}) > 6


def test_each_adapter_answers_on_a_base_that_is_loaded_once(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = list[Path | None]()
    open_base = whole.open_base

    def counted(config: Any, folder: Path | None = None) -> Any:
        loaded.append(folder)
        return open_base(config, folder)

    monkeypatch.setattr(whole, "open_base", counted)
    config = config_of(base, tmp_path, adapter=[str(adapter), "base"])
    sampled = sample(config)
    assert loaded == [adapter]
    assert [source.source.name for source in sampled.sources] == ["mine", "base"]
    rows = rows_of(config.output)
    assert [(r["source"]["name"], r["number"]) for r in rows[:8]] == [
        (name, number) for name in ("mine", "base") for number in range(4)
    ]
    texts = {}
    for name, words in (("mine", [str(adapter)]), ("base", [])):
        alone = config.model_copy(update={"output": tmp_path / f"{name}.jsonl", "adapter": words})
        sample(alone)
        texts[name] = [row["text"] for row in rows_of(alone.output)]
        assert [r["text"] for r in rows if r["source"]["name"] == name] == texts[name]
    assert texts["mine"] != texts["base"]


def test_an_adapter_that_does_not_fit_is_refused_before_the_first_answer(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(adapter, tmp_path / "other")
    file = other / "adapter_config.json"
    settings = json.loads(file.read_text())
    settings["num_layers"] = 9
    file.write_text(json.dumps(settings))
    config = config_of(base, tmp_path, adapter=[str(adapter), str(other)])
    with pytest.raises(OrpoError, match=r"other .*does not fit this model"):
        sample(config)
    assert not config.output.exists()


def test_folders_without_an_adapter_and_repeats_are_all_named(base: Path, tmp_path: Path) -> None:
    words = [str(tmp_path / "absent"), "base", "base"]
    with pytest.raises(OrpoError) as error:
        sample(config_of(base, tmp_path, adapter=words))
    assert "absent: no such folder" in str(error.value)
    assert "--adapter base: is given twice." in str(error.value)


def test_a_family_that_is_wrong_in_batches_is_reported_and_answers(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base", "gemma2", query_pre_attn_scalar=16)
    events: list[Event] = []
    config = config_of(base, tmp_path, max_tokens=3)
    sample(config, events.append)
    (text,) = notices(events)
    assert text.startswith("Answers are drawn one by one: this model is not exact in batches (Val")
    assert len(rows_of(config.output)) == 12


def test_options_reach_what_is_drawn(base: Path, tmp_path: Path) -> None:
    def texts(name: str, **changes: Any) -> list[str]:
        config = config_of(base, tmp_path, output=tmp_path / f"{name}.jsonl", **changes)
        sample(config)
        return [row["text"] for row in rows_of(config.output)]

    usual = texts("usual")
    assert texts("seed", seed=1) != usual
    assert texts("hot", temperature=3.0) != usual
    assert len(set(texts("greedy", temperature=0.0)[:4])) == 1
    assert "slow" in "".join(usual)
    assert "slow" not in "".join(texts("end", eos_token="Ġslow"))
    (file := tmp_path / "thinking.jinja").write_text(THINKING)
    assert set(texts("template", chat_template=file)) == {""}  # all are inside their thought
    assert {row["finish"] for row in rows_of(tmp_path / "template.jsonl")} == {"thought"}
    rows = rows_of(tmp_path / "template.jsonl")
    assert len(rows[0]["source"]["chat_template"]) == 64
    sizes = list[int]()
    with pytest.MonkeyPatch.context() as patch:
        kept = whole.Drawing
        patch.setattr(whole, "Drawing", lambda *a: sizes.append(a[-1]) or kept(*a))
        texts("size", batch_size=5)
    assert sizes == [5]


def test_cut_answers_are_counted_with_the_limit_that_would_do(tmp_path: Path) -> None:
    base = save_talker(tmp_path / "base", ends=-0.5)
    config = config_of(base, tmp_path, max_tokens=12)
    (source,) = sample(config).sources
    longer = config.model_copy(update={"output": tmp_path / "longer.jsonl", "max_tokens": 24})
    sample(longer)
    cut = [row["id"] for row in rows_of(config.output) if row["finish"] == "length"]
    assert source.gone_on
    assert 0 < len(source.gone_on.lengths) <= source.gone_on.answers == min(len(cut), 8)
    ended = [row["tokens"] + 1 for row in rows_of(longer.output) if row["finish"] == "stop"]
    assert set(source.gone_on.lengths) <= set(ended)
    assert cut_sentence(source.source, source.answers, source.gone_on) == (
        f"base: {len(cut)} of 12 answers were cut at --max-tokens 12; of {source.gone_on.answers} "
        f"that went on, {len(source.gone_on.lengths)} end within --max-tokens "
        f"{max(source.gone_on.lengths)}."
    )
    unfollowed = config.model_copy(update={"output": tmp_path / "unfollowed.jsonl"})
    assert sample(unfollowed, follow_cut=False).sources[0].gone_on is None


def test_a_template_without_a_system_role_and_a_prompt_it_cannot_render_are_named(
    base: Path, tmp_path: Path
) -> None:
    (file := tmp_path / "strict.jinja").write_text("{{ raise_exception('no prompt') }}")
    with pytest.raises(OrpoError, match=r"these cannot be asked:\n.*prompts.txt:1: .*no prompt"):
        sample(config_of(base, tmp_path, chat_template=file))


def test_the_page_names_every_key_of_a_row() -> None:
    page = Path(__file__).parents[2] / "docs" / "answers.md"
    table = page.read_text(encoding="utf-8").split("## answers.jsonl")[1]
    named = set(re.findall(r"`(\w+)`", table))
    assert named >= {*SampledAnswer.model_fields, *AnswerSource.model_fields}
