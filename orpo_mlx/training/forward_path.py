"""The path that log-probs take through a model: the prefix tree, or a plain one if necessary."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from orpo_mlx.data.batching.prefix_tree import Batch, build_batch
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.model.backbone import SplitModel, outer_slots, split_model, trained_head
from orpo_mlx.model.grad_checkpoint import training_layers
from orpo_mlx.model.lora import dropout_chain
from orpo_mlx.model.recurrent.forms import SPAN, Form, find_loops, forms_of, recurrence
from orpo_mlx.model.tree_forward import (
    TreeCall,
    UnknownCacheError,
    hidden_states,
    level_caches,
    plain_logits,
)
from orpo_mlx.objective.logps import chunk_positions, hidden_logps, token_logps
from orpo_mlx.training.cpu_attention import cheap_softmax


class ForwardPath:
    """How the log-probs of pairs are computed for one model.

    `layout` is build_batch's. `parts` is None where the model runs undivided and its logits are
    kept. `checkpoint`: keep the layers' inputs only. `form`: how recurrent layers run, with `span`
    tokens between the states that are kept.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layout: str = "tree",
        parts: SplitModel | None = None,
        checkpoint: bool = False,
        rounding: int = 0,
        form: Form = "loop",
        span: int = SPAN,
    ):
        self.model, self.layout, self.parts = model, layout, parts
        self.checkpoint, self.rounding, self.form, self._span = checkpoint, rounding, form, span
        self.loops = find_loops(model)
        self._slots, self._chain = outer_slots(model), dropout_chain(model)
        self._size: int | None = None  # of the vocabulary

    def batch(
        self,
        pairs: Sequence[EncodedPair],
        indices: Sequence[int] | np.ndarray,
        nll_on: str,
        limit: int | None = None,
    ) -> Batch:
        """The pairs at `indices`, laid out for this path; `limit` bounds the batch prefix."""
        return build_batch(
            pairs, indices, layout=self.layout, nll_on=nll_on, rounding=self.rounding, limit=limit
        )

    def token_logps(self, calls: Sequence[Any], targets: mx.array) -> mx.array:
        """Log-probs of the targets in float32, shape (S,); in training mode with gradients."""
        tree = [TreeCall(*call) for call in calls]
        with self.recurrence():
            if self.parts is None:
                return token_logps(plain_logits(self.model, tree), targets)
            return self.head_logps(hidden_states(self.model, self.parts, tree), targets)

    def head_logps(self, hidden: mx.array, targets: mx.array) -> mx.array:
        """Log-probs of the targets from the states (S, D) that predict them, in chunks."""
        assert self.parts is not None
        slots, chain = self._slots, self._chain
        key = mx.random.split(chain[0])[0] if chain and self.model.training else None
        head = trained_head(self.parts, slots, chain, key)
        return hidden_logps(
            hidden,
            targets,
            head,
            parameters=[module[name] for module, name in slots],
            chunk=chunk_positions(self._vocabulary(hidden)),
            gradient=self.model.training,
        )

    @contextmanager
    def differentiated(self) -> Iterator[None]:
        """Active from before the forward pass until the gradient has been computed."""
        # The plain path keeps MLX's own attention.
        attention = nullcontext() if self.parts is None else cheap_softmax()
        layers = training_layers(self.model, checkpoint=self.checkpoint)
        with attention, layers, self.recurrence():
            yield

    def recurrence(self) -> AbstractContextManager[None]:
        """Recurrent layers run in this path's form meanwhile."""
        return recurrence(self.loops, self.form, self._chain, self._span)

    def _vocabulary(self, hidden: mx.array) -> int:
        if self._size is None:
            assert self.parts is not None
            self._size = self.parts.head(mx.zeros_like(hidden[:1])).shape[-1]
        return self._size


BatchArrays = tuple[list[Any], mx.array, mx.array, mx.array | None, mx.array | None]


def arrays_of(batch: Batch, states: Sequence[mx.array] | None = None) -> BatchArrays:
    """A batch as what a compiled step can take: calls, targets, weights, nll_weights, paired.

    `states` are those of the trunk cache, (N, T, D) for each call.
    """
    calls = [[mx.array(c.ids), c.parent, mx.array(c.rows), mx.array(c.scored)] for c in batch.calls]
    if states is not None:
        calls = [[*call, kept] for call, kept in zip(calls, states, strict=True)]
    nll = None if batch.nll_weights is None else mx.array(batch.nll_weights)
    paired = None if batch.paired is None else mx.array(batch.paired)
    return calls, mx.array(batch.targets), mx.array(batch.weights), nll, paired


def fast_path(
    model: nn.Module, *, checkpoint: bool = False, rounding: int = 0, form: Form | None = None
) -> tuple[ForwardPath, str | None]:
    """The prefix tree's path; a plain one and the reason where the model has none.

    `form` is how recurrent layers run; None: the best that the machine has.
    """
    reason = "its head cannot be separated from its backbone"
    try:
        level_caches(model)
        if parts := split_model(model):
            how: dict[str, Any] = {"checkpoint": checkpoint, "rounding": rounding}
            return ForwardPath(model, parts=parts, form=form or forms_of(model)[0], **how), None
    except UnknownCacheError as error:
        reason = f"it uses a {error}, which the prefix tree cannot continue"
    return plain_path(model, checkpoint=checkpoint, form=form), reason


def plain_path(
    model: nn.Module,
    *,
    checkpoint: bool = False,
    layout: str = "padded",
    form: Form | None = None,
) -> ForwardPath:
    """Each response by the model's own forward: in one right-padded call, or in rows of its own.

    Its loops over tokens stay: in spans, or as they are if that is the `form`.
    """
    own: Form = "loop" if "loop" in (form, forms_of(model)[0]) else "spans"
    return ForwardPath(model, layout=layout, checkpoint=checkpoint, form=own)
