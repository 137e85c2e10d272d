"""Recurrent layers in every form, whole models: the values and gradients of mlx-lm's own loop."""

import sys
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from orpo_mlx import backend
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.model.lora import reset_dropout
from orpo_mlx.model.mlx_lm_api import make_prompt_cache
from orpo_mlx.model.recurrent import forms
from orpo_mlx.model.recurrent.forms import Form, Sizes, find_loops, forms_of, recurrence
from orpo_mlx.training.forward_path import fast_path
from tests import tiny
from tests.families import RECURRENT, VOCABULARY
from tests.model.comparison import by_path, judge_of
from tests.model.family_cases import PAIRS, build_model, model_of

pytestmark = [pytest.mark.touchy, pytest.mark.usefixtures("eager")]

CHUNKED = ["kimi_linear", "kimi_k3", "olmo_hybrid", "bailing_moe_v3"]
IN_SPANS = ["bailing_moe_linear", "jamba", "mamba", "rwkv7", "recurrent_gemma"]
IDS = np.random.default_rng(0).integers(0, VOCABULARY, (2, 70))


Values = dict[str, np.ndarray]


def computed(model: nn.Module, form: Form, *, span: int = 16, ids: np.ndarray = IDS) -> Values:
    """Logits, and the gradient of a weighted sum of them by what is trained."""
    weights = mx.random.normal((*ids.shape, VOCABULARY), key=mx.random.key(0))
    trained = model.trainable_parameters()

    def total(parameters: Any) -> tuple[mx.array, mx.array]:
        model.update(parameters)
        logits = model(mx.array(ids), cache=make_prompt_cache(model))
        return (weights * logits).sum(), logits

    with recurrence(find_loops(model), form, span=span):
        (_, logits), gradient = mx.value_and_grad(total)(trained)
    mx.eval(logits, gradient)
    model.update(trained)
    return {"logits": np.array(logits)} | {n: np.array(g) for n, g in tree_flatten(gradient)}


def distance(values: Values, right: Values) -> float:
    """The largest relative one of an array."""
    assert values.keys() == right.keys()
    norm = np.linalg.norm
    return max(float(norm(values[n] - x) / norm(x)) for n, x in right.items() if norm(x))


def test_every_family_has_its_form() -> None:
    assert sorted(CHUNKED + IN_SPANS) == sorted(RECURRENT)
    assert [forms_of(model_of(f, None)) for f in CHUNKED] == [["chunked"]] * len(CHUNKED)
    assert [forms_of(model_of(f, None)) for f in IN_SPANS] == [["spans"]] * len(IN_SPANS)
    others = ("llama", "falcon_h1", "mamba2", "lfm2")
    assert [forms_of(model_of(f, None)) for f in others] == [["loop"]] * len(others)


@pytest.mark.parametrize("family", [*CHUNKED, *IN_SPANS])
def test_spans_are_the_loop(family: str) -> None:
    """Another order of the sums over tokens, in float32."""
    model = model_of(family, None)
    assert distance(computed(model, "spans"), computed(model, "loop")) < 1e-5


OTHER_FORMS: list[tuple[str, Form]] = [
    *((family, "chunked") for family in CHUNKED),
    # On the CPU MLX's own function is a loop, which takes one decay a head.
    ("olmo_hybrid", "fused"),
    ("qwen3_5", "fused"),
]


@pytest.mark.parametrize(("family", "form"), OTHER_FORMS)
def test_gated_delta_in_other_forms_is_the_loop(family: str, form: Form) -> None:
    model = model_of(family, None)
    assert distance(computed(model, form), computed(model, "loop")) < 1e-5


@pytest.mark.parametrize("family", ["qwen3_5", "kimi_linear"])
@pytest.mark.parametrize("text", [" ", "-"])
def test_a_run_of_one_token_through_a_model(family: str, text: str) -> None:
    random, run = np.random.default_rng(0), np.full(64, ord(text), dtype=np.int32)
    ends = [random.integers(1, VOCABULARY, n).astype(np.int32) for n in (5, 9, 7)]
    pair = EncodedPair(np.concatenate([run, ends[0]]), np.concatenate([run, ends[1]]), ends[2], "")
    model = model_of(family, None)
    path, _ = fast_path(model)
    assert path.form == "chunked"
    values = by_path(model, path, path.batch([pair], [0], "response"))
    mx.enable_compile()  # the twin switches it off itself
    assert judge_of(model, [pair]).shares(values).right


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_next", "kimi_linear"])
def test_the_tree_never_calls_mlx_lms_own(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = model_of(family, None), []
    path, _ = fast_path(model)
    code = sys.modules[f"mlx_lm.models.{family}"]
    original = code.gated_delta_update
    monkeypatch.setattr(
        code, "gated_delta_update", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    by_path(model, path, path.batch(PAIRS, range(3), "response"))
    assert not calls
    with path.recurrence():
        arrays = dict.fromkeys("qkv", mx.zeros((1, 2, 1, 1)))
        rates = {"a": mx.zeros((1, 2, 1)), "b": mx.zeros((1, 2, 1))}
        decays = {"A_log": mx.zeros(1), "dt_bias": mx.zeros(1)}
        mask = mx.ones((1, 2), dtype=mx.bool_)
        code.gated_delta_update(**arrays, **rates, **decays, mask=mask)
    assert calls == [1]


def test_an_unknown_argument_goes_to_mlx_lms_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    model = model_of("qwen3_5", None)
    code = sys.modules["mlx_lm.models.qwen3_5"]
    monkeypatch.setattr(code, "gated_delta_update", lambda *a, **k: seen.append(k))
    with recurrence(find_loops(model), "chunked"):
        code.gated_delta_update(*[None] * 7, scale=2.0, allow_neg_eigval=True)
    assert seen == [
        {"use_kernel": True, "lower_bound": None, "allow_neg_eigval": True, "scale": 2.0}
    ]


OWN_CODE = """
from mlx_lm.models import qwen3_5
from mlx_lm.models.gated_delta import gated_delta_update
from mlx_lm.models.qwen3_5 import ModelArgs

class Model(qwen3_5.Model):
    pass

class GatedDeltaNet(qwen3_5.GatedDeltaNet):
    def __call__(self, inputs, mask=None, cache=None):
        kept = qwen3_5.gated_delta_update
        qwen3_5.gated_delta_update = gated_delta_update
        try:
            return super().__call__(inputs, mask, cache)
        finally:
            qwen3_5.gated_delta_update = kept
"""


@pytest.mark.parametrize("layers", ["mlx-lm's", "its own", "inherited"])
def test_a_base_with_its_own_code(layers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file is run by mlx-lm, but is not in sys.modules."""
    model, _ = tiny.build_model("qwen3_5")
    right = computed(model, "loop")
    own: dict[str, Any] = {"__name__": "custom_model"}
    exec(OWN_CODE, own)
    if layers == "inherited":
        del own["GatedDeltaNet"].__call__
    model.__class__ = own["Model"]
    for module in model.modules():
        if layers != "mlx-lm's" and type(module).__name__ == "GatedDeltaNet":
            module.__class__ = own["GatedDeltaNet"]
    assert forms_of(model) == ["chunked"]
    assert 0 < distance(computed(model, "chunked"), right) < 1e-5
    assert own["gated_delta_update"].__module__ == "mlx_lm.models.gated_delta"


def test_nothing_stays_replaced_and_blocks_do_not_nest() -> None:
    model = model_of("qwen3_5", None)
    code = sys.modules["mlx_lm.models.qwen3_5"]
    before, loops = code.gated_delta_update, find_loops(model)
    with pytest.raises(ZeroDivisionError), recurrence(loops, "chunked"):
        inside = code.gated_delta_update
        assert inside is not before
        with recurrence(loops, "spans"):
            assert code.gated_delta_update is inside
        raise ZeroDivisionError
    assert code.gated_delta_update is before


@pytest.mark.parametrize("family", ["mamba", "jamba"])
def test_dropout_in_spans_is_the_same_with_checkpointed_layers(family: str) -> None:
    model, gradients = build_model(family, None, dropout=0.3), []
    for checkpoint in (False, True):
        path, _ = fast_path(model, checkpoint=checkpoint)
        assert path.form == "spans"
        path._span = 8
        batch = path.batch(PAIRS[:1], [0], "response")
        gradients.append(by_path(model, path, batch, key=mx.random.key(3)).gradient)
    assert distance(gradients[1], gradients[0]) < 1e-5
    reset_dropout(model, mx.random.key(4))


KERNELS = [
    (Sizes(16, 32, 128, 128, False), True),
    (Sizes(16, 48, 128, 128, False), True),
    (Sizes(32, 32, 128, 128, False), True),
    (Sizes(16, 32, 128, 128, True), False),  # a decay for each channel
    (Sizes(16, 32, 64, 64, False), False),
    (Sizes(8, 16, 128, 128, False), False),
]


@pytest.mark.parametrize(("sizes", "fits"), KERNELS)
def test_the_kernel_takes_its_sizes(sizes: Sizes, fits: bool) -> None:
    assert forms.has_kernel(sizes) == fits


@pytest.mark.parametrize(
    ("on_cpu", "metal", "fits", "expected"),
    [
        (True, True, True, ["chunked"]),
        (False, False, True, ["chunked"]),  # CUDA
        (False, True, False, ["chunked"]),
        (False, True, True, ["fused", "chunked"]),
    ],
)
def test_the_rule(
    on_cpu: bool, metal: bool, fits: bool, expected: list[Form], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("qwen3_5", None)
    monkeypatch.setattr(backend, "is_cpu", lambda: on_cpu)
    monkeypatch.setattr(mx.metal, "is_available", lambda: metal)
    monkeypatch.setattr(forms, "has_kernel", lambda sizes: fits)
    assert forms_of(model) == expected
