"""Tiny bases that say words and come to an end, where random ones give bytes for ever."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from orpo_mlx.model.mlx_lm_api import save_config, save_model
from tests import tiny

OPENING, CLOSING = "<think>", "</think>"
# ChatML that opens a thought for the answer, and writes the thoughts of answers.
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' %}"
    "{{ '<think>\n' + (message.reasoning_content or '') + '</think>' }}{% endif %}"
    "{{ message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
FAR = -60.0  # of a logit that is never drawn


def save_talker(
    folder: Path,
    *,
    ends: float = 1.5,  # logits of special tokens, next to about 0 of a word
    closes: float | None = None,
    opens: float | None = None,
    in_bytes: bool = False,  # letters instead of words, which are other tokens when read
    template: str = tiny.CHATML,
    family: str = "llama",
    **changes: Any,
) -> Path:
    """Write a base whose logits have a bias for each token: words alone, and the special tokens."""
    tokenizer = tiny.build_tokenizer(template)
    tokenizer.add_tokens([OPENING, CLOSING])
    model, config = tiny.build_model(family, tie_word_embeddings=False, **changes)
    bias = np.full(tiny.VOCABULARY, FAR, np.float32)
    texts = iter("hetrows") if in_bytes else (f" {w}" for w in tiny.WORDS)
    bias[[ids[0] for t in texts if len(ids := tokenizer.encode(t)) == 1]] = 0.0
    special: Mapping[str, float | None] = {"<|im_end|>": ends, OPENING: opens, CLOSING: closes}
    for token, logit in special.items():
        if logit is not None:
            bias[tokenizer.convert_tokens_to_ids(token)] = logit
    _add_bias(model, bias)
    config["eos_token_id"] = tokenizer.eos_token_id
    folder.mkdir(parents=True)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    tokenizer.save_pretrained(str(folder))
    return folder


def _add_bias(model: Any, bias: np.ndarray) -> None:  # (V,)
    """Let the first number of each state be a constant, which the head multiplies by the bias."""
    changed = dict(tree_flatten(model.parameters()))
    for name, value in changed.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            value[0] = 0.0
        elif name.endswith("embed_tokens.weight"):
            value[:, 0] = 100.0
        elif name.endswith("lm_head.weight"):
            # 100 is the whole norm of a state, of which the last layer norm makes sqrt(D).
            value[:, 0] = mx.array(bias) / value.shape[1] ** 0.5
            value[:, 1:] *= 60.0
    model.load_weights(list(changed.items()))
    mx.eval(model.parameters())


def save_prompts(file: Path, count: int = 3) -> Path:
    """Prompts of unlike length, a line each."""
    rows = [" ".join(tiny.WORDS[n : 2 + 3 * n]) for n in range(1, count + 1)]
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return file


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
