"""At the start of a run: check the fast path against the model's own forward, else go plain."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from orpo_mlx import __version__, backend
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.data.tokens.pair_facts import pair_lengths
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback, Notice
from orpo_mlx.files import replacing
from orpo_mlx.model.base import (
    Base,
    base_fingerprint,
    cause_of_not_finite,
    why_not_finite,
)
from orpo_mlx.model.mlx_lm_api import make_prompt_cache
from orpo_mlx.model.recurrent import forms as recurrent_forms
from orpo_mlx.model.recurrent import gated_delta
from orpo_mlx.model.recurrent.forms import Form, forms_of, loops_used
from orpo_mlx.training.forward_path import ForwardPath, arrays_of, fast_path, plain_path

# From this length on a mixture of experts sorts its tokens, and short sums no longer hide a fault.
SHORTEST_ROW = 128
# A wrong offset moves gradients by 0.3 and, in some families, log-probs by 1e-3 only.
TOLERANCES = {
    "float32": (1e-4, 1e-3),  # seen in 30 layers: 2e-6 and 4e-6
    "half": (0.05, 0.15),  # rounding alone moves a tensor's gradient by 1 to 4 %, in float32 too
}
B_STD = 0.02
REFERENCE_SPAN = 16  # tokens


class PathGap(NamedTuple):
    """The largest differences: of a response's mean log-prob, and of all gradients, relative L2."""

    logps: float
    gradients: float


class NoReferenceError(Exception):
    """The model's own gradient is not finite, so that nothing can be compared with it: why."""


def choose_path(
    base: Base,
    pairs: Sequence[EncodedPair],
    report: Callback,
    *,
    adapter: dict[str, Any] | None = None,  # what is trained; None: values only
    plain: bool = False,
    checkpoint: bool = False,
    rounding: int = 0,
    forms: Sequence[Form] | None = None,  # of recurrent layers, best first; None: the machine's
) -> ForwardPath:
    """The fast path, if a pair of the data proves that it equals the model's own forward here.

    Otherwise the next form of recurrent layers, or a plain path, and why. A verdict is kept in the
    cache folder and not repeated.
    """
    model, forms = base.model, forms or forms_of(base.model)
    lengths = pair_lengths(pairs)
    rows = lengths[:, 0] + lengths[:, 1:3].max(axis=1)
    if alone := _runs_alone(base.config, int(rows.max())):
        report(Notice(alone))
        return plain_path(model, checkpoint=checkpoint, layout="rows", form=forms[-1])
    if plain:
        return plain_path(model, checkpoint=checkpoint, form=forms[-1])
    pair = _with_two_responses(pairs[check_pair(rows, base.config)])
    for form in forms:
        path, reason = fast_path(model, checkpoint=checkpoint, rounding=rounding, form=form)
        if reason:
            report(Notice(f"The plain path is used for this model: {reason}."))
            return path
        file = _verdict_file(base, pair, adapter, path)
        try:
            wrong = _why_not_exact(path, pair, file, gradients=adapter is not None)
        except NoReferenceError as error:
            report(Notice(f"{error} The fast path is not checked, the plain path is used.", True))
            break
        if not wrong:
            return path
        following = "plain path" if form == forms[-1] else f"{forms[-1]} form of recurrent layers"
        report(
            Notice(
                f"The fast path is not exact for this model ({pair.location}: {wrong}). The "
                f"{following} is used; orpo-mlx doctor checks this machine. To check again, remove "
                f"{file}.",
                warning=True,
            )
        )
    return plain_path(model, checkpoint=checkpoint, form=forms[-1])


def _with_two_responses(pair: EncodedPair) -> EncodedPair:
    """A pair as it is; an SFT row with its response reversed as the other one, so that all levels
    of the tree are compared."""
    return pair._replace(rejected=pair.chosen[::-1]) if pair.is_sft else pair


def _why_not_exact(path: ForwardPath, pair: EncodedPair, file: Path, *, gradients: bool) -> str:
    """What exceeds its tolerance, measured or as kept in the file; "" if nothing does."""
    try:
        gap = _load(file)
        if gap is None:
            gap = measure_gap(path, pair, gradients=gradients)
            _save(file, gap)
        return _beyond(gap, TOLERANCES["float32" if computes_float32(path.model) else "half"])
    # Model code may use a cache as no other model does.
    except (AttributeError, TypeError, ValueError, LookupError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def _runs_alone(config: dict[str, Any], longest: int) -> str:
    """Why every response runs alone; "" if none has to."""
    limit = _dynamic_rope(config, longest)
    if not limit:
        return ""
    return (
        "Every response runs alone: rope of type dynamic depends on the length past "
        f"{limit} tokens (longest: {longest})."
    )


def _beyond(gap: PathGap, allowed: tuple[float, float]) -> str:
    """What exceeds its tolerance, in words; "" if nothing does."""
    parts = [
        f"{name} are NaN or infinite"
        if np.isnan(difference)
        else f"{name} off by {difference:.1e}, at most {limit:g} allowed"
        for name, difference, limit in zip(("log-probs", "gradients"), gap, allowed, strict=True)
        if not difference <= limit
    ]
    return "; ".join(parts)


def check_pair(rows: Sequence[int] | np.ndarray, config: dict[str, Any]) -> int:
    """The shortest pair past every window and rope threshold that the data pass, or the longest."""
    rows = np.asarray(rows, np.int64)  # 32 bits, as lengths are kept, do not hold the largest below
    passed = [limit for limit in _thresholds(config) if limit < rows.max()]
    wanted = max([SHORTEST_ROW, *passed])
    beyond = np.where(rows > wanted, rows, np.iinfo(np.int64).max)
    return int(np.argmin(beyond) if (rows > wanted).any() else np.argmax(rows))


def measure_gap(path: ForwardPath, pair: EncodedPair, *, gradients: bool = True) -> PathGap:
    """The path compared with one unpadded forward of each response by the model itself.

    Adapters get a random B for it, since with B = 0 the gradient of A is 0. Raises OrpoError where
    the model's own values are not finite, NoReferenceError where its own gradient is not.
    """
    model = path.model
    training = model.training
    model.train(gradients)
    try:
        with _random_b(model):
            ours, our_gradients = _by_path(path, pair, gradients)
            theirs, their_gradients = _by_model(_reference(path), pair, gradients)
    finally:
        model.train(training)
    if not np.isfinite(theirs).all():
        raise OrpoError(
            f"The base gives NaN or infinite numbers for {pair.location}: {why_not_finite(model)}."
        )
    if not _are_finite(their_gradients):
        raise NoReferenceError(
            f"The model's own gradient is NaN or infinite for {pair.location}"
            + (f": {cause}." if (cause := cause_of_not_finite(model)) else ".")
        )
    gap = np.abs(ours - theirs).max()
    return PathGap(float(gap), _relative(our_gradients, their_gradients))


def _reference(path: ForwardPath) -> ForwardPath:
    """The model as mlx-lm has it: where it loops over tokens, with few states kept at once."""
    if path.form == "loop":
        return path
    return ForwardPath(
        path.model, parts=path.parts, checkpoint=True, form="spans", span=REFERENCE_SPAN
    )


# Different weights, so that a mix-up of the two responses shows.
_WEIGHTS = (1.0, -0.5)


def _by_path(path: ForwardPath, pair: EncodedPair, gradients: bool) -> tuple[np.ndarray, Any]:
    calls, targets, weights, *_ = arrays_of(path.batch([pair], [0], "response"))

    def means() -> mx.array:
        return (weights * path.token_logps(calls, targets)).sum(axis=-1)

    return _values_and_gradients(path, means, mx.array(_WEIGHTS), gradients)


def _by_model(path: ForwardPath, pair: EncodedPair, gradients: bool) -> tuple[np.ndarray, Any]:
    """Each response in a forward of its own, with mlx-lm's own caches; one at a time."""
    values, total = [], None
    for response, weight in zip((pair.chosen, pair.rejected), _WEIGHTS, strict=True):
        ids = mx.array(np.concatenate([pair.prompt, response]))

        def mean(ids: mx.array = ids) -> mx.array:
            assert path.parts is not None
            cache = make_prompt_cache(path.model)
            hidden = path.parts.backbone(ids[None, :-1], cache=cache)[0]
            start = len(pair.prompt)
            return path.head_logps(hidden[start - 1 :], ids[start:]).mean()[None]

        value, gradient = _values_and_gradients(path, mean, mx.array([weight]), gradients)
        values.append(value)
        total = gradient if total is None else tree_map(mx.add, total, gradient)
        mx.eval(total)
    return np.concatenate(values), total


def _values_and_gradients(
    path: ForwardPath, means: Any, weights: mx.array, gradients: bool
) -> tuple[np.ndarray, Any]:
    model = path.model
    if not gradients:
        return np.array(means()), {}
    trained = model.trainable_parameters()

    def weighted(parameters: Any) -> tuple[mx.array, mx.array]:
        model.update(parameters)
        values = means()
        return (weights * values).sum(), values

    try:
        with path.differentiated():
            (_, values), gradient = mx.value_and_grad(weighted)(trained)
    finally:
        model.update(trained)
    mx.eval(values, gradient)
    return np.array(values), gradient


@contextmanager
def _random_b(model: nn.Module) -> Iterator[None]:
    kept = [(n, v) for n, v in tree_flatten(model.trainable_parameters()) if n.endswith("lora_b")]
    keys = mx.random.split(mx.random.key(0), max(len(kept), 1))
    drawn = [
        (name, (B_STD * mx.random.normal(value.shape, key=key)).astype(value.dtype))
        for (name, value), key in zip(kept, keys, strict=bool(kept))
    ]
    model.update(tree_unflatten(drawn))
    try:
        yield
    finally:
        model.update(tree_unflatten(kept))


def _relative(ours: Any, theirs: Any) -> float:
    """The L2 norm of the difference of two trees, relative to that of the second."""
    a, b = dict(tree_flatten(ours)), dict(tree_flatten(theirs))
    if not b:
        return 0.0
    apart = mx.stack([mx.square((a[n] - v).astype(mx.float32)).sum() for n, v in b.items()]).sum()
    whole = mx.stack([mx.square(v.astype(mx.float32)).sum() for v in b.values()]).sum()
    if not whole.item():
        return np.inf if apart.item() else 0.0
    return float(np.array(mx.sqrt(apart / whole)))


def _are_finite(tree: Any) -> bool:
    return all(mx.isfinite(value).all().item() for _, value in tree_flatten(tree))


def _thresholds(config: Any) -> Iterator[int]:
    """Lengths from which a model computes differently: windows, chunks, rope's original lengths."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _thresholds(value)
        elif type(value) is int and any(w in key for w in ("window", "position", "chunk")):
            yield value


def _dynamic_rope(config: dict[str, Any], longest: int) -> int | None:
    """The length past which rope's base follows that of the call, if the data pass it."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else None
    limit = config.get("max_position_embeddings")
    return limit if kind == "dynamic" and isinstance(limit, int) and longest > limit else None


def computes_float32(model: nn.Module) -> bool:
    """Whether nothing is in half precision, on a device whose float32 is not TF32."""
    kinds = {v.dtype for _, v in tree_flatten(model.parameters())}
    return backend.is_cpu() and not kinds & {mx.bfloat16, mx.float16}


def _verdict_file(
    base: Base, pair: EncodedPair, adapter: dict[str, Any] | None, path: ForwardPath
) -> Path:
    trained = {k: v for k, v in (adapter or {}).items() if k not in ("model", "revision")}
    facts = [
        __version__,
        metadata.version("mlx"),
        metadata.version("mlx-lm"),
        base_fingerprint(base),
        trained,
        path.checkpoint,
        path.rounding,
        *_recurrence_facts(path),
        [len(part) for part in (pair.prompt, pair.chosen, pair.rejected)],
    ]
    name = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    return backend.cache_folder() / "self-check" / f"{name[:32]}.json"


def _recurrence_facts(path: ForwardPath) -> list[Any]:
    """What a verdict on recurrent layers depends on: their form, sizes and code."""
    if path.form == "loop":
        return []
    _, sizes = loops_used(path.model)
    code = [
        hashlib.sha256(Path(str(m.__file__)).read_bytes()) for m in (gated_delta, recurrent_forms)
    ]
    return [path.form, sorted(sizes), *(digest.hexdigest() for digest in code)]


def _load(file: Path) -> PathGap | None:
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        gap = PathGap(float(stored["logps"]), float(stored["gradients"]))
        return gap if np.isfinite(gap).all() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _save(file: Path, gap: PathGap) -> None:
    """Keep a verdict; a cache that cannot be written costs a check at every start, nothing else."""
    try:
        with replacing(file) as new:
            new.write_text(json.dumps(gap._asdict()) + "\n", encoding="utf-8")
    except OrpoError:
        return
