"""The mean log-prob of a written answer: as it was drawn if it is these tokens, else computed."""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import mlx.nn as nn
import numpy as np

from orpo_mlx.data.pairs.messages import Message, PreferencePair
from orpo_mlx.data.tokens.encoder import EncodedPair, Encoder
from orpo_mlx.data.tokens.rendering.refused import RefusedError
from orpo_mlx.errors import OrpoError
from orpo_mlx.sampling.batches import Drawn
from orpo_mlx.sampling.prompts import AskedPrompt
from orpo_mlx.training.evaluate import evaluate_encoded
from orpo_mlx.training.forward_path import ForwardPath, plain_path


class Scorer:
    """Mean log-probs per response token of the answers of one model, as `evaluate` has them."""

    def __init__(self, model: nn.Module, encoder: Encoder):
        self._model, self._encoder = model, encoder

    @cached_property
    def _path(self) -> ForwardPath:
        return plain_path(self._model)

    def score(
        self, prompt: AskedPrompt, ids: Sequence[int], message: Message, drawn: Drawn
    ) -> float:
        """The mean of an answer to a prompt of these ids, over its tokens and its end token.

        Where the template cannot write the answer, of the tokens as they were drawn.
        """
        logps, encoded = drawn.logps, self._encode(prompt, message)
        if encoded is None or encoded == (list(ids), drawn.ids):
            return sum(logps) / len(logps)
        before, response = (np.array(part, np.int32) for part in encoded)
        pair = EncodedPair(before, response, response, prompt.location)
        values = evaluate_encoded(self._path, [pair], beta=0.0, nll_on="response", batch_size=1)
        return float(values["logps/chosen"][0])

    def _encode(self, prompt: AskedPrompt, message: Message) -> tuple[list[int], list[int]] | None:
        """Ids of prompt and answer as training and evaluation read them; None if they cannot."""
        pair = PreferencePair(
            prompt.prompt, message, message, prompt.location, prompt.tools, is_sft=True
        )
        try:
            rendered = self._encoder.render_pair(pair, Counter())
            before, response, *_ = self._encoder.encode(pair, rendered)
        except (RefusedError, OrpoError):
            return None
        return before, response
