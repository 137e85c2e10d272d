"""A whole run in children, one after the other: watched, and started again after a death."""

import datetime as dt
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback, Event, Finished, Listeners, Notice, SettingsChanged
from orpo_mlx.run_folder.folder import CONFIG, CRASHES, check_output, settle
from orpo_mlx.run_folder.state import Condition, load_state, save_state
from orpo_mlx.supervisor.child import COMMAND
from orpo_mlx.supervisor.crashes import Crash, save_crashes, shown_words
from orpo_mlx.supervisor.event_lines import Message, Result
from orpo_mlx.supervisor.faults import Death, classify_death
from orpo_mlx.supervisor.memory import (
    MemoryFacts,
    malloc_may_fail,
    oom_kills,
    smaller_settings,
    why_memory,
)
from orpo_mlx.supervisor.restart import Deaths, Reports, rules_of_run, settings_to_go_on
from orpo_mlx.supervisor.signals import Signals, received_signals
from orpo_mlx.supervisor.watch import ChildEnd, run_child


class RunEnd(NamedTuple):
    """How a supervised run ended; `words` is a traceback that its child printed."""

    status: int
    facts: dict[str, Any]
    words: str = ""


def supervise(
    config: TrainConfig,
    callbacks: Sequence[Callback],
    *,
    lock: int = -1,  # the descriptor of the run folder's lock, which this process has
    command: Sequence[str] = COMMAND,
    printed: Callable[[str], None] = lambda text: None,
) -> RunEnd:
    """Train by these settings in children; callbacks get every event, `printed` the rest.

    Raises OrpoError for what ends a run as `train` does, and when nothing more is tried;
    KeyboardInterrupt where a child was interrupted before it could save.
    """
    check_output(config)
    with received_signals() as signals:
        run = _SupervisedRun(config, Listeners(callbacks), signals)
        return run.run(
            lambda config, receive: run_child(
                config, receive, signals, lock=lock, command=command, printed=printed
            )
        )


class _SupervisedRun:
    """What is known of one run over all its children."""

    def __init__(self, config: TrainConfig, report: Listeners, signals: Signals):
        self.config, self.report, self.signals = config, report, signals
        self._reports, self._deaths = Reports(), Deaths()
        self._changes: dict[str, int] = {}
        self._crashes: list[Crash] = []
        self._finished: Finished | None = None
        self._oom_kills = 0

    def run(
        self, run_child: Callable[[TrainConfig, Callable[[Message], None]], ChildEnd]
    ) -> RunEnd:
        """Child after child, until one has come to the end, was stopped, or no more are tried."""
        config = self.config
        while True:
            self._reports.begin()
            self._finished, self._oom_kills = None, oom_kills()
            end = run_child(config, self._receive)
            if end.result and not self._is_pause(end.result):
                return self._end(end.result)
            if end.result:
                self._pause(end.result)
                if self.signals.received:
                    self._record("stopped", self.signals.reason)
                    return self._end(end.result)
            elif outcome := self._after_death(end):
                return outcome
            config = settings_to_go_on(self.config, self._reports.announced, self._changes)

    def _receive(self, message: Message) -> None:
        self._reports(message)
        if isinstance(message, Finished):  # shown when it is known that no segment follows
            self._finished = message
        elif isinstance(message, Result) and not self._is_pause(message):
            self._show_end()
        elif isinstance(message, Event):
            self._report(message)

    def _report(self, event: Event) -> None:
        self.report(event)
        if self.report.stop and not self.signals.received:
            self.signals.ask()

    def _is_pause(self, result: Result) -> bool:
        return result.segment and not self.signals.received

    def _show_end(self) -> None:
        if self._finished:
            self._report(self._finished)
        self._finished = None

    def _end(self, result: Result) -> RunEnd:
        self._show_end()
        return RunEnd(130 if result.stopped else 0, result.facts)

    def _pause(self, result: Result) -> None:
        """Wait for --cooldown, or for a signal."""
        self._record("running")
        seconds = self.config.cooldown
        self._report(Notice(
            f"A segment of {self.config.segment_steps} steps ends after step {self._reports.step}; "
            f"the next one begins in {seconds:g} s."
        ))  # fmt: skip
        wait_between(seconds, self.signals)

    def _after_death(self, end: ChildEnd) -> RunEnd | None:
        """None to go on; raises OrpoError or KeyboardInterrupt where the run is over."""
        words = "\n".join(text for text in (end.words, end.failure) if text)
        death = classify_death(end.status, words, hung_seconds=end.hung_seconds)
        if not death.retried:
            return self._not_retried(death, end)
        self._deaths.count(death, self._reports.announced)
        self._keep(death, words)
        if self.signals.received:
            self._report(Notice(self._sentence(death, words), warning=True))
            self._give_back()
            self._record("interrupted", death.text)
            raise KeyboardInterrupt
        why = why_memory(death, self._memory_facts())
        if why and self._deaths.total > 1:
            self._change(death, why, words)
        elif self._deaths.too_many:
            raise self._given_up(death, words)
        else:
            text = f"{self._sentence(death, words)}\n{self._going_on()}"
            self._report(Notice(text, warning=True))
        self._record("running")
        return None

    def _not_retried(self, death: Death, end: ChildEnd) -> RunEnd:
        if death.asked_for:
            raise KeyboardInterrupt
        if end.failure:
            raise OrpoError(end.failure)
        if end.status == 1:
            return RunEnd(1, {}, end.words)
        raise self._failed(f"{self._sentence(death, end.words)}\n{self._how_to_go_on()}")

    def _memory_facts(self) -> MemoryFacts:
        return MemoryFacts(
            oom_kills() - self._oom_kills,
            self._reports.last_peak_bytes,
            self._reports.limit_bytes,
            self._deaths.bare_signals,
            malloc_may_fail(),
        )

    def _change(self, death: Death, why: str, words: str) -> None:
        """Go on with settings that need less memory; raises OrpoError if there are none."""
        reports = self._reports
        now = settings_to_go_on(self.config, reports.announced, self._changes)
        changes, text = smaller_settings(
            grad_checkpoint=now.grad_checkpoint,
            micro_batch_size=reports.micro_batch_size,
            batch_size=now.batch_size,
            rules=rules_of_run(now),
        )
        sentence = self._sentence(death, words)
        if not changes:
            raise self._failed(f"{sentence}\nIt counts as a lack of memory: {why}. {text}")
        self._changes |= changes
        self._deaths.settings_changed()
        text = f"{sentence}\nIt counts as a lack of memory: {why}. {text}"
        self._report(
            SettingsChanged(reports.announced or 0, changes, f"{text}\n{self._going_on()}")
        )

    def _keep(self, death: Death, words: str) -> None:
        text = f"The training process {death.text} after step {self._reports.step}."
        self._crashes.append(Crash(dt.datetime.now(), text, words))
        if (self.config.output / CONFIG).is_file():
            self._keep_all()

    def _keep_all(self) -> None:
        save_crashes(self.config.output, self._crashes)

    def _given_up(self, death: Death, words: str) -> OrpoError:
        return self._failed(
            f"{self._sentence(death, words)}\nThat was the third death without a new checkpoint "
            "between: no more is tried. What the processes printed last is in "
            f"{self.config.output / CRASHES}. {self._how_to_go_on()}"
        )

    def _failed(self, text: str) -> OrpoError:
        """The error that ends the run, which is kept in its folder, too."""
        self._give_back()
        self._keep_all()
        self._record("failed", text.partition("\n")[0])
        return OrpoError(text)

    def _give_back(self) -> None:
        """Bring back the run that this one, without a checkpoint, was to replace."""
        output = self.config.output
        with suppress(OSError):  # the next start does it
            if settle(output, failed=True):
                self._reports.begun = False
                self._report(Notice(f"{output}: the run is back that this one was to replace."))

    def _record(self, state: Condition, reason: str = "") -> None:
        """Correct state.json: it is a child's, or of one that could not write any more."""
        stored = load_state(self.config.output) if self._reports.begun else None
        if stored:
            now = dt.datetime.now().astimezone().isoformat(timespec="seconds")
            new = stored._replace(state=state, reason=reason, step=self._reports.step, updated=now)
            with suppress(OrpoError):  # a full disk: whoever reads the file sees a free lock
                save_state(self.config.output, new)

    def _sentence(self, death: Death, words: str) -> str:
        shown = shown_words(words)
        printed = f" It printed last:{shown}" if shown else ""
        return f"The training process {death.text} after step {self._reports.step}.{printed}"

    def _going_on(self) -> str:
        announced = self._reports.announced
        if announced is not None:
            return f"Going on from the checkpoint of step {announced}."
        again = "Going on" if self.config.resume else "Beginning again"
        return f"{again}: it has written no checkpoint yet."

    def _how_to_go_on(self) -> str:
        output = shlex.quote(str(self.config.output))
        if self._reports.announced is None and not self.config.resume:
            return "It had written no checkpoint yet."
        return f"Continue with: orpo-mlx train --resume --output {output}"


def wait_between(seconds: float, signals: Signals) -> None:
    """Wait between two segments, until a signal comes."""
    late = time.monotonic() + seconds
    while (left := late - time.monotonic()) > 0 and not signals.received:
        time.sleep(min(left, 0.5))
