"""A compiled step is the eager one, and is compiled once for each shape."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from orpo_mlx.events import Event, StepDone
from orpo_mlx.training import loop
from orpo_mlx.training.run import Run
from tests.training.runs import curve, settings

# On a CPU MLX has g++ compile every fused operation, a hundred files.
pytestmark = [pytest.mark.touchy, pytest.mark.long]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs take themselves to be on a GPU: lengths are rounded, the step is compiled."""
    monkeypatch.setattr("orpo_mlx.training.build.backend", SimpleNamespace(is_cpu=lambda: False))
    yield
    mx.enable_compile()


def compiles() -> bool:
    """Whether MLX compiles: without a C++ compiler its CPU backend runs a body at every call."""
    bodies: list[mx.array] = []
    probe = mx.compile(lambda x: bodies.append(x) or x + 1)
    for _ in range(2):
        mx.eval(probe(mx.zeros(2)))
    return len(bodies) == 1


class Work(NamedTuple):
    """What the steps of a run have computed from its start to the end of each."""

    micro_steps: list[int]
    shapes: list[int]  # distinct ones, each compiled once

    @property
    def bodies(self) -> list[int]:
        """How often the body of a compiled step has run."""
        return self.shapes if compiles() else self.micro_steps


def work(run: Run, steps: int) -> Work:
    """From plan and layout alone, whatever was compiled."""
    done, seen = Work([], []), []
    for step in range(steps):
        for part in run.plan.step(step):
            batch = run.path.batch(run.train, part, "response", run.plan.limit(part))
            seen.append(repr([(c.ids.shape, c.parent, c.scored.shape) for c in batch.calls]))
        done.micro_steps.append(len(seen))
        done.shapes.append(len(set(seen)))
    return done


OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "dropout": {"dropout": 0.2},
    "checkpointed": {"grad_checkpoint": True},
    "checkpointed dropout": {"grad_checkpoint": True, "dropout": 0.2},
    "trained embedding": {"target_modules": "q_proj,embed_tokens", "dropout": 0.2},
    "plain": {"plain": True, "dropout": 0.2},
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_compiled_step_is_the_eager_one(
    llama: Path, kindred: Path, tmp_path: Path, runs: list[Run], compiled: None, kind: str
) -> None:
    config = {"steps": 6, **OPTIONS[kind]}
    loop.train(settings(llama, kindred, tmp_path / "compiled", **config))
    done = work(runs[0], 6)
    assert runs[0].train_step.traces == done.bodies[-1]
    mx.disable_compile()
    loop.train(settings(llama, kindred, tmp_path / "eager", **config))
    assert runs[0].plan.rounding == runs[1].plan.rounding > 0
    assert done.shapes[-1] < runs[1].train_step.traces == done.micro_steps[-1]
    # Fused operations round otherwise.
    np.testing.assert_allclose(curve(tmp_path / "compiled"), curve(tmp_path / "eager"), rtol=1e-6)
    norms = [curve(tmp_path / name, "grad_norm") for name in ("compiled", "eager")]
    np.testing.assert_allclose(*norms, rtol=1e-5)


def test_nothing_is_compiled_again_in_steady_state(
    llama: Path, kindred: Path, tmp_path: Path, runs: list[Run], compiled: None
) -> None:
    traces: list[int] = []

    def count(event: Event) -> None:
        if isinstance(event, StepDone):
            traces.append(runs[0].train_step.traces)

    # Four steps an epoch; the rate, the step and the dropout key are other ones each time.
    loop.train(settings(llama, kindred, tmp_path / "run", steps=32, dropout=0.1), [count])
    assert len(traces) == 32
    done = work(runs[0], 32)
    assert traces == done.bodies
    assert done.shapes[23] == done.shapes[-1] < done.micro_steps[23]
