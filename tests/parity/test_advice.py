"""Where a command refuses and names another, that one is run, and transformers loads its folder."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orpo_mlx.cli.main import run as run_command
from orpo_mlx.config.interop import ConvertConfig, ExportConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.interop.checkpoint.folder import KEPT_AS_STORED, PROVEN
from orpo_mlx.interop.convert.to_mlx import convert
from orpo_mlx.interop.gguf.adapter import export_gguf
from orpo_mlx.interop.peft import exporter
from tests import tiny
from tests.interop.adapted import adapted, logits
from tests.parity import peft_bases
from tests.parity.test_fuse import theirs

pytestmark = [pytest.mark.parity, pytest.mark.touchy]
# Float32 of some hundred additions; bases that differ by as much themselves.
SAME = 1e-4
TOLERANCE = {"qwen3_5": 2e-3, "qwen3_next": 2e-3}
LAYERS = {"deepseek_v3": ["q_a_proj", "o_proj"]}  # it has no q_proj


def refusal(run: Path, **changes: Any) -> str:
    options = ExportConfig(adapter=run, to="gguf", output=run.parent / "gguf", **changes)
    with pytest.raises(OrpoError) as error:
        export_gguf(options, lambda event: None)
    return str(error.value)


def follow(text: str, folder: Path) -> Path:
    """Run the command of a message, with the names that it leaves open."""
    command = re.search(r"orpo-mlx (fuse .*)", text)
    assert command, text
    names = {"FOLDER": str(folder / "followed"), "ORIGINAL": str(folder / "original")}
    arguments = [names.get(word, word) for word in shlex.split(command[1])]
    assert run_command(arguments) == 0
    return folder / "followed"


def test_every_family_with_a_way_is_tried_in_one_direction_or_the_other() -> None:
    assert {*KEPT_AS_STORED} == {*exporter.PROVEN} - {*PROVEN} - {"gpt_oss"}
    assert {*KEPT_AS_STORED} <= {*peft_bases.FAMILIES}  # tests/parity/test_fuse.py fuses them


@pytest.mark.parametrize(("family", "bits"), [("lfm2", 4), ("olmoe", None), ("olmoe", 4)])
def test_a_base_in_mlx_layout_becomes_a_folder_for_transformers(
    tmp_path: Path, family: str, bits: int | None
) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    peft_bases.build_theirs(family, tmp_path / "original")
    options = {"bits": bits, "group_size": 32} if bits else {}
    source = str(tmp_path / "original")
    convert(ConvertConfig(source=source, output=base, **options), lambda event: None)
    adapted(base, run, ["q_proj", "v_proj"])
    text = refusal(run)
    assert "convert_hf_to_gguf.py is for such folders; it was not run on one of ours." in text
    out = follow(text, tmp_path)
    np.testing.assert_allclose(
        theirs(out), np.array(logits(base, run)), atol=1e-2 if bits else 1e-3
    )


@pytest.mark.parametrize("family", KEPT_AS_STORED)
def test_an_adapter_goes_into_the_original_where_mlx_layout_leads_nowhere(
    tmp_path: Path, family: str
) -> None:
    base, run, original = tmp_path / "base", tmp_path / "run", tmp_path / "original"
    peft_bases.build_theirs(family, original)
    options = ConvertConfig(source=str(original), output=base, bits=4, group_size=32)
    convert(options, lambda event: None)
    adapted(base, run, LAYERS.get(family, ["q_proj", "v_proj"]))
    text = refusal(run)
    assert "into the base's original Hugging Face folder, ORIGINAL: " in text
    out = follow(text, tmp_path)
    expected = np.array(logits(original, run))
    assert np.abs(expected - np.array(logits(original))).max() > 0.05
    np.testing.assert_allclose(theirs(out), expected, atol=TOLERANCE.get(family, SAME), rtol=0)


@pytest.mark.parametrize(
    ("family", "words", "changes"),
    [
        ("gpt_oss", "either: mlx-lm reads it only in MXFP4.", {"bits": 4, "mode": "mxfp4"}),
        ("dbrx", "either: its checkpoint has the rows of all experts in one tensor.", {}),
        ("falcon_h1", "No test of ours writes a falcon_h1 as a Hugging Face folder either.", {}),
    ],
)
def test_where_no_way_is_known_none_is_named(
    tmp_path: Path, family: str, words: str, changes: dict[str, Any]
) -> None:
    base = tiny.save_base(tmp_path / "base", family, **changes)
    adapted(base, tmp_path / "run", ["all-linear"])
    text = refusal(tmp_path / "run")
    assert text.endswith(words)
    assert "orpo-mlx" not in text and "convert_hf_to_gguf" not in text


def test_a_text_part_that_mlx_lm_does_not_know_is_refused_with_the_way_out(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base", "qwen3_5", bits=4)
    options = ConvertConfig(source=str(base), output=tmp_path / "plain", dequantize=True)
    with pytest.raises(OrpoError, match=r"no model of type qwen3_5_text.*Use the original folder"):
        convert(options, lambda event: None)
