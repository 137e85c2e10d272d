"""A run's answers to its sample prompts: the likeliest tokens, by the template of the run."""

from collections.abc import Sequence
from pathlib import Path

import mlx.nn as nn

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.data.tokens.encoder import Encoder
from orpo_mlx.errors import collected
from orpo_mlx.events import Listeners, Progress
from orpo_mlx.loading import Template, build_encoder, check_prompt_ids
from orpo_mlx.model.base import Base
from orpo_mlx.run_folder.folder import SAMPLES
from orpo_mlx.training.samples.answer import Answer, stream_answer
from orpo_mlx.training.samples.log import Answered, append_samples, load_samples
from orpo_mlx.training.samples.prompts import SamplePrompt

SAMPLE_TOKENS = 128  # of an answer, at most


class Sampler:
    """Answers the prompts with the model as it is; what that draws or changes, nothing sees."""

    def __init__(
        self,
        model: nn.Module,
        encoder: Encoder,
        prompts: Sequence[SamplePrompt],
        ids: Sequence[list[int]],  # of each prompt
        file: Path,
    ):
        self._model, self._encoder, self._file = model, encoder, file
        self._prompts = list(zip(prompts, ids, strict=True))

    def answer(self, step: int, report: Listeners) -> bool:
        """Write the answers after `step` steps, unless they are there.

        False, with nothing written, if a stop is asked for meanwhile.
        """
        if any(row.step == step for row in load_samples(self._file)):
            return True
        rows, count = list[Answered](), len(self._prompts)
        for number, (prompt, ids) in enumerate(self._prompts):
            answer = Answer("", "", 0, False)
            for part in stream_answer(self._model, self._encoder, ids, max_tokens=SAMPLE_TOKENS):
                answer = part
                report(Progress("Answering", number, count))
                if report.stop:
                    return False
            finish = "stop" if answer.ended else "length"
            rows.append(Answered(step, prompt.prompt, answer.text, finish, answer.tokens))
        append_samples(self._file, rows)
        report(Progress("Answering", count, count))
        return True


def build_sampler(
    config: TrainConfig,
    prompts: Sequence[SamplePrompt],
    base: Base,
    template: Template,
    *,
    thinking: bool,
) -> Sampler | None:
    """The sampler of a run, if it has prompts; raises OrpoError for those that do not fit it."""
    if not prompts:
        return None
    encoder = build_encoder(base, template, thinking, config)
    ids = [encoder.prompt_ids(prompt.messages, prompt.tools) for prompt in prompts]
    for one in ids:
        check_prompt_ids(base.model, encoder.tokenizer, one)
    longest = config.max_seq_length
    faults = [
        f"{prompt.location}: {len(one):,} tokens"
        for prompt, one in zip(prompts, ids, strict=True)
        if len(one) > longest
    ]
    if faults:
        raise collected(f"--sample-prompts: longer than --max-seq-length {longest}:", faults)
    return Sampler(base.model, encoder, prompts, ids, config.output / SAMPLES)
