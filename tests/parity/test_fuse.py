"""A fused Hugging Face folder stays one: transformers' logits equal the adapter's on its base."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orpo_mlx.events import Notice
from orpo_mlx.interop.fuse.rows import stored_tensors
from orpo_mlx.model.base import load_base
from tests import tiny
from tests.interop.adapted import IDS, adapted, farthest, fused, fused_logits, logits
from tests.parity import peft_bases

pytestmark = [pytest.mark.parity, pytest.mark.touchy]

# Float32 of some hundred additions; the bases' own differences beyond that (INTEROP.md, section 1).
SAME = 1e-4
BASES = {"starcoder2": 1e-2, "granite": 5e-4, "qwen3_next": 2e-3, "qwen3_5": 2e-3, "phi3": 3e-4}


def theirs(folder: Path) -> np.ndarray:
    """Logits of transformers; it must find every tensor that it looks for."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    whole = "vision_config" in json.loads((folder / "config.json").read_text())
    kind = AutoModelForImageTextToText if whole else AutoModelForCausalLM
    model, events = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not events["missing_keys"] and not events["mismatched_keys"]
    with torch.no_grad():
        return model.eval()(torch.tensor(np.array(IDS))).logits.numpy()


@pytest.mark.parametrize("family", [f for f in peft_bases.FAMILIES if f != "gpt_oss"])
def test_transformers_loads_the_fused_folder(tmp_path: Path, family: str) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    peft_bases.build_theirs(family, base)
    names = ["all-linear", *(["mlp.gate"] if family in ("qwen3_moe", "qwen3_next") else [])]
    adapted(base, tmp_path / "run", names)
    assert fused(tmp_path / "run", out, verify=True).checked > 10
    expected = logits(base, tmp_path / "run")
    assert farthest(expected, logits(base)) > 0.05
    assert farthest(fused_logits(out), expected) < SAME
    before, after = stored_tensors(base), stored_tensors(out)
    assert {n: (t.shape, t.dtype) for n, t in after.items()} == {
        n: (t.shape, t.dtype) for n, t in before.items()
    }
    tolerance = BASES.get(family, SAME)
    np.testing.assert_allclose(theirs(out), np.array(expected), atol=tolerance, rtol=0)


@pytest.mark.parametrize("family", ["mistral3", "qwen3_5"])
def test_towers_that_mlx_lm_drops_stay_as_they_are(tmp_path: Path, family: str) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    peft_bases.build_theirs(family, base)
    (base / "preprocessor_config.json").write_text("{}")
    adapted(base, tmp_path / "run", ["all-linear"])
    events: list[Any] = []
    fused(tmp_path / "run", out, report=events.append)
    assert Notice("The vision part stays as it is.") in events
    notice = "This checkpoint also has vision: only its text part is computed and trained."
    assert any(text.startswith(notice) for text in load_base(str(base)).notices)
    before, after = stored_tensors(base), stored_tensors(out)
    towers = [n for n in before if "vision" in n or "visual" in n or "projector" in n]
    assert len(towers) > 5
    for name in towers:
        pieces = [b"".join(bytes(p) for p in tensors[name].pieces()) for tensors in (before, after)]
        assert pieces[0] == pieces[1], name
    stored = json.loads((base / "config.json").read_text())
    written = json.loads((out / "config.json").read_text())
    assert written["vision_config"] == stored["vision_config"]
    assert (out / "preprocessor_config.json").is_file()


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "mixtral", "phi3"])
def test_transformers_loads_what_was_quantized_and_is_made_plain(
    tmp_path: Path, family: str
) -> None:
    """From an MLX folder, whose experts are stacked, to a checkpoint's names."""
    base = tiny.save_base(tmp_path / "base", family, bits=4, pad_token_id=0)
    adapted(base, tmp_path / "run", ["all-linear"])
    out = tmp_path / "out"
    fused(tmp_path / "run", out, verify=True, dequantize=True, dtype="float32")
    expected = logits(base, tmp_path / "run")
    assert farthest(fused_logits(out), expected) < SAME
    np.testing.assert_allclose(theirs(out), np.array(expected), atol=3e-4, rtol=0)


def test_what_no_checkpoint_holds_stays_in_mlx_lms_layout_and_is_reported(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base", "deepseek_v3", bits=4)
    adapted(base, tmp_path / "run", ["q_a_proj"])
    events: list[Any] = []
    fused(
        tmp_path / "run", tmp_path / "out", dequantize=True, dtype="float32", report=events.append
    )
    texts = [e.text for e in events if isinstance(e, Notice)]
    assert any("in mlx-lm's layout, which transformers does not load: " in text for text in texts)
    assert farthest(fused_logits(tmp_path / "out"), logits(base, tmp_path / "run")) < SAME
