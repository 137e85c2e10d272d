"""Runs whose held-out losses are given, to see what a run makes of them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orpo_mlx.training import loop
from orpo_mlx.training import run as run_module
from orpo_mlx.training.build import build_run
from orpo_mlx.training.loop import train
from orpo_mlx.training.run import Run
from tests import tiny
from tests.training.runs import rows, settings, tensors

Patch = pytest.MonkeyPatch
# By step: the best is the second, which the fourth only equals.
LOSSES = {0: 3.0, 1: 2.0, 2: 1.5, 3: 1.7, 4: 1.5, 5: 1.6, 6: 1.0, 7: 1.2, 8: 1.1}


def plant_losses(patch: Patch, losses: Mapping[int, float], name: str = "loss") -> None:
    """Replace one metric of each validation by the value given for its step."""
    evaluate, started = run_module.evaluate_encoded, list[Run]()

    def build(*arguments: Any, **keywords: Any) -> Run:
        started.append(build_run(*arguments, **keywords))
        return started[-1]

    def planted(*arguments: Any, **keywords: Any) -> dict[str, np.ndarray]:
        values = evaluate(*arguments, **keywords)
        step = started[-1].step
        return values | {name: np.full_like(values[name], losses[step])}

    patch.setattr(loop, "build_run", build)
    patch.setattr(run_module, "evaluate_encoded", planted)


def observed(output: str, **changes: Any) -> Any:
    """The rows, checkpoints and adapter of eight planted steps."""
    model = Path("base") if Path("base").exists() else tiny.save_base(Path("base"))
    pairs = tiny.save_pairs(Path("pairs.jsonl"), 8)
    valid = tiny.save_pairs(Path("valid.jsonl"), 2, start=50)
    config = settings(
        model, pairs, Path(output), steps=8, eval_every=1, valid_data=[str(valid)], **changes
    )
    result = train(config)
    last = {n: v for n, v in tensors(Path(output)).items() if n.startswith("adapters")}
    return {"step": result.step, "rows": rows(Path(output)), "adapter": last}


def case_early_stop(patch: Patch) -> None:
    plant_losses(patch, LOSSES)
    assert observed("a")["step"] == 8
    assert observed("b", early_stop=3)["step"] == 5


def case_final(patch: Patch) -> None:
    plant_losses(patch, LOSSES)
    last, best = observed("a"), observed("b", final="best")
    assert last["rows"] == best["rows"]
    assert last["adapter"] != best["adapter"]


def case_best_metric(patch: Patch) -> None:
    plant_losses(patch, LOSSES, "logps/chosen")  # the highest is the one before training
    assert observed("a", early_stop=3, best_metric="eval_logps/chosen")["step"] == 4


def case_on_nan(patch: Patch) -> None:
    from tests.training.test_nan_steps import plant_loss

    plant_loss(patch, {3})
    assert [row.get("skipped") for row in observed("a", on_nan="skip")["rows"]].count(1.0) == 1


CASES: dict[str, Callable[[Patch], None]] = {
    "early_stop": case_early_stop,
    "final": case_final,
    "best_metric": case_best_metric,
    "on_nan": case_on_nan,
}
