"""Two trainings in one process: the second is refused, the first is not disturbed."""

import threading
from pathlib import Path

import pytest

from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event, StepDone
from orpo_mlx.training.loop import train
from tests.training.runs import settings, tensors

pytestmark = pytest.mark.touchy


def test_a_second_training_in_another_thread_is_refused(
    llama: Path, pairs_file: Path, tmp_path: Path
) -> None:
    first, second, alone = (
        settings(llama, pairs_file, tmp_path / name, steps=2, dropout=0.1)
        for name in ("first", "second", "alone")
    )
    refusals: list[str] = []

    def begin_another(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 1:
            thread = threading.Thread(target=refused)
            thread.start()
            thread.join()

    def refused() -> None:
        with pytest.raises(OrpoError) as caught:
            train(second)
        refusals.append(str(caught.value))

    train(first, [begin_another])
    [text] = refusals
    assert text.startswith("Another training is under way in this process")
    assert not second.output.exists()
    train(alone)
    assert tensors(first.output) == tensors(alone.output)


def test_a_training_that_fails_leaves_room_for_the_next(
    llama: Path, pairs_file: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        with pytest.raises(OrpoError, match="no such file"):
            train(settings(llama, tmp_path / "missing.jsonl", tmp_path / "run"))
