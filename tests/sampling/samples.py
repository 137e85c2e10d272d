"""Settings of a small sampling, and when two files hold the same answers."""

from pathlib import Path
from typing import Any

import numpy as np

from orpo_mlx.config.judging import SampleConfig
from tests.sampling.talkers import rows_of, save_prompts

DATE = "2026-01-02"


def config_of(base: Path, folder: Path, **changes: Any) -> SampleConfig:
    prompts = [str(save_prompts(folder / "prompts.txt"))]
    values = {"model": str(base), "prompts": prompts, "max_tokens": 16, "template_date": DATE,
              "output": folder / "answers.jsonl"}  # fmt: skip
    return SampleConfig.model_validate(values | changes)


def without_logp(file: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "logp"} for row in rows_of(file)]


def assert_same_answers(file: Path, expected: Path) -> None:
    """Rows alike, log-probs but for rounding: batches of other rows sum in another order."""
    assert without_logp(file) == without_logp(expected)
    logps = ([row.get("logp", 0) for row in rows_of(f)] for f in (file, expected))
    np.testing.assert_allclose(*logps, rtol=0, atol=1e-5)
