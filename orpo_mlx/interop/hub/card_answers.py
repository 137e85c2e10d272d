"""Answers of a base before and after its adapter, to prompts that it was not trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orpo_mlx.config.train import GenerateConfig
from orpo_mlx.data.pairs.load import PreferencePair
from orpo_mlx.data.tokens.encoder import Encoder
from orpo_mlx.events import Callback, Progress
from orpo_mlx.loading import build_encoder, open_base, template_of
from orpo_mlx.model.adapters import apply_adapter
from orpo_mlx.review.run_summary import Sample
from orpo_mlx.training.samples.answer import stream_answer


def sample_answers(
    model: str,
    adapter: Path,
    pairs: Sequence[PreferencePair],
    *,
    max_tokens: int,
    report: Callback,
) -> list[Sample]:
    """The likeliest answers of base and adapter to the prompts of pairs."""
    config = GenerateConfig(model=model, adapter=adapter, prompt="-")
    base = open_base(config, adapter)
    template = template_of(config, adapter)
    encoder = build_encoder(base, template, template.thinking == "on")
    total = 2 * len(pairs)

    def answers(done: int) -> list[str]:
        texts = []
        for pair in pairs:
            texts.append(_answer(base.model, encoder, pair, max_tokens))
            report(Progress("Answering for the card", done + len(texts), total))
        return texts

    before = answers(0)
    apply_adapter(base.model, adapter)
    after = answers(len(pairs))
    prompts = [str(pair.messages[-1]["content"]) for pair in pairs]
    return [Sample(*texts) for texts in zip(prompts, before, after, strict=True)]


def _answer(model: Any, encoder: Encoder, pair: PreferencePair, max_tokens: int) -> str:
    ids = encoder.prompt_ids_of(pair)
    *_, answer = stream_answer(model, encoder, ids, max_tokens=max_tokens)
    return answer.text.strip() + ("" if answer.ended else " [cut]")
