"""A round of a loop, stage by stage: what is done is not done again. No mlx.

Each stage is a command in a process of its own; loop.json records when one has come to its end.
"""

import datetime as dt
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from orpo_mlx.config.judging import LoopConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback, Notice
from orpo_mlx.files import load_json_object
from orpo_mlx.judging.session import SESSION, VOTES, load_facts
from orpo_mlx.judging.to_pairs import PairsOfVotes, write_pairs
from orpo_mlx.judging.verdict import VERDICT, VERDICT_PAGE
from orpo_mlx.loops.advice import RoundVotes, advice_on
from orpo_mlx.loops.begin import begin_round, take_back_round
from orpo_mlx.loops.child import INTERRUPTED, how_it_ended
from orpo_mlx.loops.commands import RoundCommands, RoundPaths
from orpo_mlx.loops.state import (
    Edits,
    LoopState,
    load_loop,
    loop_folder,
    save_loop,
    settle_text,
)
from orpo_mlx.run_folder.lock import locked

# In loop.json, and as methods of RoundCommands.
STAGES = ("sample_pairs", "judge_pairs", "train", "sample_verdict", "judge_verdict")
RunCommand = Callable[[Sequence[str]], int]
AskEdits = Callable[[], Edits]


class LoopResult(NamedTuple):
    """What a call came to; with `stopped` the round is not over."""

    name: str
    round: int
    stopped: bool
    pairs: int = 0  # of this round
    adapter: Path | None = None
    continued: Path | None = None  # the adapter that it was trained further from
    sentences: list[str] = []  # noqa: RUF012  (immutable by use)
    page: Path | None = None
    advice: list[str] = []  # noqa: RUF012


class _StageStopped(Exception):
    """A stage was asked to end before it was over."""


def run_loop(
    config: LoopConfig, run_command: RunCommand, ask_edits: AskEdits, report: Callback
) -> LoopResult:
    """Go on with the round that is not over, or begin the next one, and run it to its end.

    Raises OrpoError for settings that contradict those of the loop, while another process has it,
    and if a stage fails.
    """
    folder = loop_folder(config.name)
    with locked(folder, report):
        state = load_loop(folder)
        config = settle_text(config, state)
        state = take_back_round(config, state, folder, report)
        if state is None or not state.rounds or state.current.ended:
            state = begin_round(config, state, folder, report)
        if config.edits:
            state = state.model_copy(update={"edits": config.edits})
        return _RunningRound(config, state, folder, run_command, ask_edits, report).run()


class _RunningRound:
    """One round, as far as it is."""

    def __init__(
        self,
        config: LoopConfig,
        state: LoopState,
        folder: Path,
        run_command: RunCommand,
        ask_edits: AskEdits,
        report: Callback,
    ):
        self._config, self._state, self._folder = config, state, folder
        self._run_command, self._ask_edits, self._report = run_command, ask_edits, report
        self._paths = RoundPaths(folder, state.current.number)

    def run(self) -> LoopResult:
        """All stages that are left, and what they came to."""
        current = self._state.current
        if current.done and (left := STAGES[len(current.done) :]):
            next_one = left[0].replace("_", " ")
            self._report(Notice(f"Going on with round {current.number} at: {next_one}"))
        try:
            for stage in STAGES[:2]:
                self._run_stage(stage)
            votes = self._write_pairs()
            if votes and votes.pairs:
                for stage in STAGES[2:]:
                    self._run_stage(stage)
        except _StageStopped:
            return LoopResult(self._config.name, current.number, stopped=True)
        return self._end(votes)

    def _run_stage(self, stage: str) -> None:
        """Run a stage's command unless it is done, and record that it is."""
        if stage in self._state.current.done:
            return
        if not (stage == "judge_pairs" and self._is_over(stage)):  # its pairs are written below
            words = self._commands(stage)
            if stage == "train" and (last := self._continued):
                text = f"--continue: training goes on from {last}, not from the base."
                self._report(Notice(text))
            self._report(Notice(f"$ orpo-mlx {shlex.join(words)}"))
            status = self._run_command(words)
            if status == INTERRUPTED:
                raise _StageStopped
            if status:
                raise OrpoError(self._failure(words[0], status))
        done = [*self._state.current.done, stage]
        self._save(self._state.with_current(done=done, adapter=STAGES[2] in done))

    def _commands(self, stage: str) -> list[str]:
        """The arguments of a stage's command; a session that is over is only evaluated."""
        words: list[str] = getattr(RoundCommands(self._config, self._state, self._folder), stage)()
        return [*words, "--result"] if self._is_over(stage) else words

    @property
    def _continued(self) -> Path | None:
        return RoundCommands(self._config, self._state, self._folder).continued

    def _is_over(self, stage: str) -> bool:
        """Whether a judge has ended the session of a stage."""
        command, _, purpose = stage.partition("_")
        session = self._paths.session(purpose)
        has_session = command == "judge" and (session / SESSION).exists()
        return has_session and load_facts(session).ended is not None

    def _failure(self, command: str, status: int) -> str:
        others = ""
        if not (self._paths.session("pairs") / VOTES).exists():
            others = " (with other options, if they are why: there is no vote yet)"
        elif command == "train":
            others = " (with another --train-config, if its options are why)"
        return (
            f"Round {self._state.current.number} is not over: orpo-mlx {command} "
            f"{how_it_ended(status)}; what it reported is above. Go on with: orpo-mlx loop "
            f"{self._config.name}{others}"
        )

    def _write_pairs(self) -> PairsOfVotes | None:
        """The pairs of this round's votes, edits among them as was decided; None without votes."""
        session = self._paths.session("pairs")
        if not (session / VOTES).exists():
            return None
        edits = self._state.edits
        votes = write_pairs(session, edits or "keep")
        if votes.edited_next_to_thoughts and edits is None:
            edits = self._ask_edits()
            self._save(self._state.model_copy(update={"edits": edits}))
            votes = write_pairs(session, edits)
        if votes.edited_next_to_thoughts and not self._state.thinking_off:
            self._report(Notice("Edited answers have no thought: thinking is off from now on."))
            self._save(self._state.model_copy(update={"thinking_off": True}))
        return votes

    def _end(self, votes: PairsOfVotes | None) -> LoopResult:
        """Record that the round is over, and what it came to."""
        now = dt.datetime.now().astimezone().isoformat(timespec="seconds")
        self._save(self._state.with_current(ended=now))
        pairs, counts = (len(votes.pairs), votes.counts) if votes else (0, {})
        trained = self._state.current.adapter
        verdict = load_json_object(self._session("verdict", VERDICT)) if trained else None
        facts = RoundVotes(pairs, counts.get("repeats", 0), counts.get("contradicted", 0), verdict)
        return LoopResult(
            self._config.name,
            self._state.current.number,
            stopped=False,
            pairs=pairs,
            adapter=self._paths.adapter if trained else None,
            continued=self._continued if trained else None,
            sentences=verdict["sentences"] if verdict else [],
            page=self._session("verdict", VERDICT_PAGE) if trained else None,
            advice=advice_on(facts, self._config.name),
        )

    def _session(self, purpose: str, file: str) -> Path:
        return self._paths.session(purpose) / file

    def _save(self, state: LoopState) -> None:
        self._state = state
        save_loop(self._folder, state)
