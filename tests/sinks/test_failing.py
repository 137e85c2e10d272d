"""Whatever a sink does, the run is the one that it would be without."""

import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event, Finished, Started, StepDone
from orpo_mlx.install_advice import pip_install
from orpo_mlx.run_folder.folder import CONFIG, METRICS
from orpo_mlx.sinks import feed
from orpo_mlx.sinks.attach import sinks_for
from orpo_mlx.sinks.feed import Sink
from orpo_mlx.sinks.record import Row, Sent, SinkRun, open_run
from orpo_mlx.sinks.wandb import open_wandb
from orpo_mlx.training.loop import train
from tests.training.runs import notices, rows, settings, tensors

END = "The run goes on without it; what is missing there is sent by the next --resume."


class Faulty:
    """A writer that raises, or waits, at one of its methods."""

    sent: Sent | None = Sent()

    def __init__(self, fault: str, error: BaseException | threading.Event):
        self.fault, self.error, self.rows = fault, error, list[Row]()

    def __call__(self, run: SinkRun) -> "Faulty":
        self._meet("open")
        return self

    def _meet(self, method: str) -> None:
        if method == self.fault:
            if isinstance(self.error, threading.Event):
                self.error.wait()
            else:
                raise self.error

    def write(self, row: Row) -> None:
        self._meet("write")
        self.rows.append(row)

    def close(self) -> None:
        self._meet("close")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / CONFIG).write_text("model: base\n")
    return tmp_path


def four_steps(sink: Sink, folder: Path) -> None:
    """The events of a run."""
    sink(Started(0, 4, 1, 1))
    for step in range(1, 5):
        sink(StepDone(step, {"loss": 1.0}))
    sink(Finished(4, False, folder))


@pytest.mark.parametrize("error", [OSError("no network"), SystemExit(3)], ids=["error", "exit"])
@pytest.mark.parametrize("fault", ["open", "write", "close"])
def test_a_sink_that_raises_is_one_warning(folder: Path, fault: str, error: BaseException) -> None:
    events: list[Event] = []
    four_steps(Sink("wandb", Faulty(fault, error), folder, events.append), folder)
    name = f"{type(error).__name__}: {error}"
    assert notices(events, warning=True) == [f"--log-to wandb: {name}. {END}"]


@pytest.mark.parametrize("fault", ["open", "write", "close"])
def test_a_sink_that_hangs_is_one_warning(
    folder: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "CLOSE_SECONDS", 0.0)
    events: list[Event] = []
    never = threading.Event()
    four_steps(Sink("wandb", Faulty(fault, never), folder, events.append), folder)
    assert notices(events) == [f"--log-to wandb: not done after 0 seconds. {END}"]
    never.set()


@pytest.mark.touchy
def test_a_run_whose_sink_fails_is_the_run_without_it(
    llama: Path, pairs_file: Path, tmp_path: Path
) -> None:
    config = settings(llama, pairs_file, tmp_path / "run", save_every=2)
    train(config, [Sink("wandb", Faulty("write", OSError()), config.output, lambda event: None)])
    alone = config.model_copy(update={"output": tmp_path / "alone"})
    train(alone)
    assert rows(config.output) == rows(alone.output)
    assert tensors(config.output) == tensors(alone.output)


def test_rows_that_a_sink_cannot_keep_up_with_end_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "MOST_WAITING", 2)
    events: list[Event] = []
    never = threading.Event()
    sink = Sink("wandb", Faulty("open", never), folder, events.append)
    sink(Started(0, 5, 1, 1))
    for step in range(1, 6):
        sink(StepDone(step, {"loss": 1.0}))
    assert notices(events, warning=True) == [f"--log-to wandb: 2 steps behind. {END}"]
    never.set()


def test_an_interrupt_while_a_sink_is_waited_for_is_not_swallowed(folder: Path) -> None:
    sink = Sink("wandb", Faulty("", OSError()), folder, lambda event: None)
    sink(Started(0, 5, 1, 1))

    def interrupt(timeout: float) -> None:
        raise KeyboardInterrupt

    assert sink._thread is not None
    thread, join = sink._thread, sink._thread.join
    sink._thread.join = interrupt  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        sink(Finished(1, False, folder))
    thread.join = join  # type: ignore[method-assign]
    sink.close()


def test_a_sink_that_cannot_be_read_back_is_sent_nothing_twice(folder: Path) -> None:
    class Blind(Faulty):
        sent = None

    steps = []
    for begin, end in ((0, 4), (2, 6)):  # the second begins at the checkpoint of step 2
        writer = Blind("", OSError())
        sink = Sink("trackio", writer, folder, lambda event: None)
        sink(Started(begin, 6, 1, 1))
        for step in range(begin + 1, end + 1):
            sink(StepDone(step, {"loss": 1.0}))
        sink.close()
        steps += [row["step"] for row in writer.rows]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_run_whose_process_is_started_again_is_sent_through_one_writer(folder: Path) -> None:
    opened: list[SinkRun] = []
    writer = Faulty("", OSError())

    def opener(run: SinkRun) -> Faulty:
        opened.append(run)
        return writer

    sink = Sink("wandb", opener, folder, lambda event: None)
    for begin, end in ((0, 3), (2, 4)):  # the first dies after step 3, its checkpoint is of step 2
        sink(Started(begin, 4, 1, 1))
        for step in range(begin + 1, end + 1):
            sink(StepDone(step, {"loss": 1.0}))
    sink(Finished(4, False, folder))
    assert [row["step"] for row in writer.rows] == [1, 2, 3, 4]
    assert len(opened) == 1


def test_a_sink_that_is_given_twice_is_one(folder: Path) -> None:
    names = ["tensorboard", "wandb", "tensorboard"]
    config = TrainConfig(model="base", data=["pairs"], output=folder, log_to=names)
    with sinks_for(config, lambda event: None) as sinks:
        assert [sink.name for sink in sinks] == ["tensorboard", "wandb"]


def test_a_sink_that_failed_is_not_opened_again(folder: Path) -> None:
    opened: list[SinkRun] = []

    def opener(run: SinkRun) -> Faulty:
        opened.append(run)
        raise OSError

    sink = Sink("wandb", opener, folder, lambda event: None)
    four_steps(sink, folder)
    four_steps(sink, folder)
    assert len(opened) == 1


def test_a_finished_run_that_is_resumed_is_sent_what_is_missing(folder: Path) -> None:
    rows_ = [f'{{"step": {step}, "loss": 1.0}}\n' for step in range(1, 5)]
    (folder / METRICS).write_text("".join(rows_))
    writer = Faulty("", OSError())
    sink = Sink("wandb", writer, folder, lambda event: None)
    sink(Finished(4, False, folder))  # no step is left, so none is begun
    assert [row["step"] for row in writer.rows] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_sink_whose_package_is_absent_names_its_extra(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    events: list[Event] = []
    config = TrainConfig(model="base", data=["pairs"], output=folder, log_to=[name])
    with sinks_for(config, events.append) as sinks:
        four_steps(*sinks, folder)
    (warning,) = notices(events, warning=True)
    assert f"{name} is needed here" in warning
    assert pip_install(name) in warning


def test_wandb_without_a_key_asks_nothing_on_the_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in of the three names that are asked before a run is opened."""
    asked: list[dict[str, bool]] = []

    def login(**given: bool) -> bool:
        asked.append(given)
        return False

    settings = SimpleNamespace(settings=SimpleNamespace(mode="online"))
    wandb = SimpleNamespace(setup=lambda: settings, run=None, login=login)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(OrpoError, match="run wandb login, or set WANDB_MODE=offline"):
        open_wandb(open_run(folder))
    assert asked == [{"prompt": False, "verify": False}]
