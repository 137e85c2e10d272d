"""A round of a loop, stage by stage: what is done is not done again. No mlx.

Each stage is a command in a process of its own; loop.json records when one has come to its end.
"""

import datetime as dt
import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orpo_mlx.config.judging import LoopConfig, SampleConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback, Notice
from orpo_mlx.files import load_json_object, remove, replacing
from orpo_mlx.judging.plan import repeats_of
from orpo_mlx.judging.power import power_sentence
from orpo_mlx.judging.session import SESSION, VOTES, load_facts
from orpo_mlx.judging.to_pairs import PairsOfVotes, write_pairs
from orpo_mlx.loops.advice import RoundVotes, advice_on
from orpo_mlx.loops.child import INTERRUPTED, how_it_ended
from orpo_mlx.loops.commands import RoundCommands, RoundPaths
from orpo_mlx.loops.split import prompt_id, prompts_of_round, sides_of
from orpo_mlx.loops.state import (
    Edits,
    LoopState,
    Round,
    Side,
    check_changes,
    kept_settings,
    load_loop,
    loop_folder,
    save_loop,
    settle_text,
)
from orpo_mlx.run_folder.lock import locked
from orpo_mlx.sampling.prompts import AskedPrompt, load_prompts

VERDICT, VERDICT_PAGE = "verdict.json", "verdict.html"
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
        state = _settled(config, state, folder, report)
        if state is None or not state.rounds or state.current.ended:
            state = _begin_round(config, state, folder, report)
        if config.edits:
            state = state.model_copy(update={"edits": config.edits})
        return _RunningRound(config, state, folder, run_command, ask_edits, report).run()


def _settled(
    config: LoopConfig, state: LoopState | None, folder: Path, report: Callback
) -> LoopState | None:
    """The state with which these options can go on; raises OrpoError if they contradict it.

    A round without a vote that other options were given for is taken back.
    """
    if state is None or not state.rounds:
        return state
    paths = RoundPaths(folder, state.current.number)
    is_judged = not state.current.ended and (paths.session("pairs") / VOTES).exists()
    check_changes(state, config, is_judged=is_judged)
    if state.current.ended or is_judged or state.settings == kept_settings(config):
        return state
    report(Notice(f"Round {paths.number} begins again with other options: it has no vote yet."))
    earlier = state.model_copy(update={"rounds": state.rounds[:-1]})
    save_loop(folder, earlier)
    remove(paths.folder)
    return earlier


def _begin_round(
    config: LoopConfig, state: LoopState | None, folder: Path, report: Callback
) -> LoopState:
    """The state with a new round, whose prompts are chosen and written."""
    rounds = state.rounds if state else []
    source = SampleConfig(model=config.model, prompts=config.prompts, group_by=config.group_by)
    asked = {prompt_id(prompt.hash): prompt for prompt in load_prompts(source, report)}
    wanted: dict[Side, int] = {"pairs": config.pair_prompts, "verdict": config.verdict_prompts}
    sides = sides_of(
        [prompt.hash for prompt in asked.values()],
        state.sides if state else {},
        verdict_share=config.verdict_prompts / sum(wanted.values()),
        seed=config.seed,
    )
    chosen = prompts_of_round(asked, sides, rounds, counts=wanted, seed=config.seed)
    paths = RoundPaths(folder, len(rounds) + 1)
    for side, ids in chosen.items():
        _write_prompts(paths.prompts(side), [asked[prompt] for prompt in ids])
    new = Round(
        number=paths.number, pair_prompts=chosen["pairs"], verdict_prompts=chosen["verdict"]
    )
    before = state or LoopState(settings={}, sides={}, rounds=[])
    changes = {"settings": kept_settings(config), "sides": sides, "rounds": [*rounds, new]}
    begun = before.model_copy(update=changes)
    save_loop(folder, begun)
    for text in _opening(config.name, begun, len(asked)):
        report(Notice(text))
    return begun


def _write_prompts(file: Path, prompts: Sequence[AskedPrompt]) -> None:
    with replacing(file) as new:
        new.write_text(
            "".join(f"{json.dumps(_row(prompt), ensure_ascii=False)}\n" for prompt in prompts),
            encoding="utf-8",
        )


def _row(prompt: AskedPrompt) -> dict[str, Any]:
    name = "prompt" if isinstance(prompt.prompt, str) else "messages"
    more = {"tools": prompt.tools, "group": prompt.group}
    return {name: prompt.prompt} | {key: value for key, value in more.items() if value is not None}


def _opening(name: str, state: LoopState, asked: int) -> list[str]:
    """What is before the judge, and what it can show."""
    current, before = state.current, state.rounds[:-1]
    pairs, verdict = len(current.pair_prompts), len(current.verdict_prompts)
    again = {p for r in before for p in (*r.pair_prompts, *r.verdict_prompts)}
    repeated = len(again & {*current.pair_prompts, *current.verdict_prompts})
    lines = [
        f"Round {current.number} of {name}: up to {pairs} + {verdict} votes (for pairs, for the "
        f"verdict), and {repeats_of(pairs)} + {repeats_of(verdict)} of them a second time, which "
        "shows how steady they are.",
        f"The verdict: {power_sentence(verdict)}",
    ]
    if repeated:
        lines.append(
            f"{repeated} of these prompts were asked in an earlier round: all {asked} were used. "
            "Add others with --prompts before a round begins."
        )
    return lines


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
        if current.done:
            left = STAGES[len(current.done)].replace("_", " ")
            self._report(Notice(f"Going on with round {current.number} at: {left}"))
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
        if not self._is_judged(stage):
            words = self._commands(stage)
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

    def _is_judged(self, stage: str) -> bool:
        """Whether a session came to its result, and its command not so far as to be recorded."""
        if not self._is_over(stage):
            return False
        return stage == "judge_pairs" or self._session("verdict", VERDICT).exists()

    def _is_over(self, stage: str) -> bool:
        """Whether a judge has ended the session of a stage."""
        command, _, purpose = stage.partition("_")
        session = self._paths.session(purpose)
        has_session = command == "judge" and (session / SESSION).exists()
        return has_session and load_facts(session).ended is not None

    def _failure(self, command: str, status: int) -> str:
        votes = (self._paths.session("pairs") / VOTES).exists()
        others = "" if votes else " (with other options, if they are why: there is no vote yet)"
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
            sentences=_sentences_of(verdict) if verdict else [],
            page=self._session("verdict", VERDICT_PAGE) if trained else None,
            advice=advice_on(facts, self._config.name),
        )

    def _session(self, purpose: str, file: str) -> Path:
        return self._paths.session(purpose) / file

    def _save(self, state: LoopState) -> None:
        self._state = state
        save_loop(self._folder, state)


def _sentences_of(verdict: dict[str, Any]) -> list[str]:
    return [*verdict["sentences"], *verdict["forgotten"]["sentences"]]
