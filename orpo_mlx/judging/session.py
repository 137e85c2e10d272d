"""A session of judging: one folder with answers, items and votes, held by one process.

answers.jsonl is a copy, so that the folder stays whole; session.json has the plan. No mlx.
"""

import datetime as dt
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import RLock
from typing import Any, Literal, NamedTuple

from pydantic import Field

from orpo_mlx.config.judging import JudgeConfig
from orpo_mlx.data.pairs.messages import Message
from orpo_mlx.data.reading.text_file import read_text
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback, Notice
from orpo_mlx.files import LOCK, load_json_object, recover, replacing, save_json
from orpo_mlx.judging.answers import (
    SampledAnswer,
    append_answers,
    load_all_answers,
    load_answers,
    sum_of,
)
from orpo_mlx.judging.json_lines import JsonRow, validated
from orpo_mlx.judging.plan import PlannedItem, plan_pairs, plan_verdict, unlike_settings
from orpo_mlx.judging.votes import (
    Choice,
    EditedAnswer,
    Vote,
    append_votes,
    check_on_items,
    effective_votes,
    judge_name,
    load_votes,
)
from orpo_mlx.run_folder.lock import locked

ANSWERS, VOTES = "answers.jsonl", "votes.jsonl"
SESSION, GUIDELINES = "session.json", "guidelines.md"
Purpose = Literal["pairs", "verdict"]


class ShownItem(NamedTuple):
    """What a judge sees next."""

    id: str
    messages: list[Message]
    tools: list[Any] | None
    first: SampledAnswer  # on the left
    second: SampledAnswer


class SessionFacts(JsonRow):
    """session.json. `prompts` is fixed when the session begins, whatever is judged of them."""

    purpose: Purpose
    seed: int
    per_prompt: int
    prompts: int
    items: list[PlannedItem]
    equal: list[tuple[str, str]] = Field(default=[])  # ids of equal answers: ties by the machine
    left_out: dict[str, int] = Field(default={})
    answers_sum: str  # a hash of the answers that it was made of
    stops: list[int] = Field(default=[])  # items judged at each end before all were
    went_on: list[str] = Field(default=[])  # when votes were added after an end, ISO 8601
    ended: str | None = None  # ISO 8601


class Session:
    """The judging of one folder; threads may share it. Who makes one holds the folder's lock."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.facts = load_facts(folder)
        self.purpose = self.facts.purpose
        self.answers = {answer.id: answer for answer in load_answers(folder / ANSWERS)}
        self._items = {item.id: item for item in self.facts.items}
        missing = {i for item in self.facts.items for i in (item.first, item.second)}
        if missing := missing - self.answers.keys():
            raise OrpoError(
                f"{folder / ANSWERS}: {len(missing)} answers of {SESSION} are not in it. Put the "
                "file back as it was, or judge again with another --output."
            )
        self._rows = load_votes(folder / VOTES)
        check_on_items(self._rows, self._items, folder / VOTES)
        self._lock = RLock()
        self._was_ended = False  # when it was opened, and nothing was added since

    @property
    def votes(self) -> list[Vote]:
        """The votes that hold."""
        return effective_votes(self._rows)

    @property
    def ended(self) -> bool:
        """Whether the session is over."""
        return self.facts.ended is not None

    @property
    def guidelines(self) -> str:
        """What the judges are asked to go by, "" for nothing."""
        file = self.folder / GUIDELINES
        return read_text(file) if file.exists() else ""

    def next_item(self, judge: str) -> ShownItem | None:
        """The first item that this judge has not voted on or skipped; None: all are done."""
        with self._lock:
            done = {vote.item for vote in self._votes_of(judge)}
            return next((self.shown(item) for item in self._items if item not in done), None)

    def shown(self, item_id: str) -> ShownItem:
        """An item as it is shown; raises KeyError if there is none of that id."""
        item = self._items[item_id]
        first, second = self.answers[item.first], self.answers[item.second]
        return ShownItem(item.id, first.messages, first.tools, first, second)

    def vote(
        self,
        judge: str,
        vote_id: str,
        item_id: str,
        choice: Choice,
        *,
        edit: EditedAnswer | None = None,
        note: str = "",
    ) -> None:
        """Append a vote; it is on the disk when this returns.

        Nothing is written for a vote that is there, and for an item that this judge has done.
        Raises KeyError for an item that does not exist, OrpoError for an edit of another one, after
        the end, and for a name that cannot be one.
        """
        with self._lock:
            item = self._items[item_id]
            done = any(vote.item == item_id for vote in self._votes_of(judge))
            if done or any(row.vote == vote_id for row in self._rows):
                return
            if edit and (edit.of not in (item.first, item.second) or not edit.text.strip()):
                raise OrpoError("An edit is a text, of one of the two answers that are shown.")
            self._append(
                Vote(
                    vote=vote_id,
                    judge=judge_name(judge),
                    item=item_id,
                    first=item.first,
                    second=item.second,
                    choice=choice,
                    repeat_of=item.repeat_of,
                    edit=edit,
                    note=note,
                    time=_now(),
                )
            )

    def undo(self, judge: str, undo_id: str = "") -> bool:
        """Take this judge's last vote back, so that its item is next; False if nothing is written.

        An undo of the same id is one, however often it is sent.
        """
        with self._lock:
            own = self._votes_of(judge)
            if not own or (undo_id and any(row.vote == undo_id for row in self._rows)):
                return False
            last = own[-1]
            changes = {"vote": undo_id or f"undo-{last.vote}", "undo": last.vote, "time": _now()}
            self._append(last.model_copy(update=changes | {"edit": None, "note": ""}))
            return True

    def progress(self, judge: str) -> tuple[int, int]:
        """How many items this judge has done, repeats too, and of how many."""
        with self._lock:
            return len(self._votes_of(judge)), len(self._items)

    def judges(self) -> list[str]:
        """Who has voted, in order of their first votes."""
        with self._lock:
            return list(dict.fromkeys(vote.judge for vote in self.votes))

    def end(self) -> None:
        """Record that the session is over; with votes missing, that it was stopped by choice."""
        with self._lock:
            originals = {item.id for item in self._items.values() if not item.repeat_of}
            judged = originals & {vote.item for vote in self.votes}
            stops = self.facts.stops
            if judged != originals:
                stops = [*stops, len(judged)]
            self._save(ended=_now(), stops=stops)

    def go_on(self) -> None:
        """Open a session again that was over; that votes were added is recorded with the first."""
        with self._lock:
            if self.ended:
                self._was_ended = True
                self._save(ended=None)

    def _votes_of(self, judge: str) -> list[Vote]:
        """This judge's votes that hold on items of this session, in order; skipped ones too."""
        name = judge_name(judge)
        return [vote for vote in self.votes if vote.judge == name and vote.item in self._items]

    def _append(self, row: Vote) -> None:
        if self.ended:
            raise OrpoError("The session is over: open it again to go on.")
        if self._was_ended:
            self._save(went_on=[*self.facts.went_on, _now()])
            self._was_ended = False
        append_votes(self.folder / VOTES, [row])
        self._rows.append(row)

    def _save(self, **changes: Any) -> None:
        self.facts = self.facts.model_copy(update=changes)
        save_facts(self.folder, self.facts)


@contextmanager
def open_session(config: JudgeConfig, report: Callback) -> Iterator[Session]:
    """The session of these answers, or of this folder: made, or gone on with, under its lock.

    With `config.result` one that is over stays so. Raises OrpoError for answers that cannot be
    judged, and for a folder that holds another session or anything else.
    """
    folder = folder_of(config)
    answers = None if list(config.answers) == [folder] else load_all_answers(config.answers)
    guidelines = read_text(config.guidelines, "--guidelines") if config.guidelines else None
    with locked(folder, report):
        for name in (ANSWERS, SESSION, GUIDELINES):
            recover(folder / name, report)
        if (folder / SESSION).exists():
            _check_same(config, folder, answers)
        else:
            _make(config, folder, answers or [])
        if guidelines is not None:
            with replacing(folder / GUIDELINES) as new:
                new.write_text(guidelines, encoding="utf-8")
        session = Session(folder)
        if not config.result:
            session.go_on()
        for text in describe_session(session):
            report(Notice(text))
        yield session


def folder_of(config: JudgeConfig) -> Path:
    """The folder of a session: the one that is gone on with, --output, or next to the answers.

    Raises OrpoError where a session and another folder are named.
    """
    first = config.answers[0]
    if len(config.answers) > 1 or not (first / SESSION).is_file():
        return config.output or first.parent / f"judged-{config.purpose}"
    if config.output not in (None, first):
        raise OrpoError(
            f"{first} is the folder of a session: go on with it without --output, or name files of "
            "answers for another session."
        )
    return first


def describe_session(session: Session) -> Iterator[str]:
    """What there is to judge, and what was left out, a sentence each."""
    facts = session.facts
    repeats = sum(item.repeat_of is not None for item in facts.items)
    again = f", {repeats} of them again with sides swapped" if repeats else ""
    prompts = f"{facts.prompts} prompt{'s' * (facts.prompts != 1)}"
    yield f"{session.folder}: {len(facts.items) - repeats} x two answers to {prompts}{again}."
    if facts.equal:
        yield f"{len(facts.equal)} x equal answers of the two models: ties, not shown."
    yield from (f"left out: {count} x {reason}" for reason, count in facts.left_out.items())
    unlike = unlike_settings(session.answers.values()) if facts.purpose == "verdict" else {}
    for name, values in unlike.items():
        shown = " and ".join(sorted(map(str, values)))  # in no order of the models
        sampled = f"The two models were sampled with another {name}, {shown}"
        yield f"{sampled}: a difference may be due to that."


def load_facts(folder: Path) -> SessionFacts:
    """session.json; raises OrpoError if it is not one."""
    return validated(load_json_object(folder / SESSION), SessionFacts, folder / SESSION)


def save_facts(folder: Path, facts: SessionFacts) -> None:
    """Write session.json."""
    with replacing(folder / SESSION) as new:
        save_json(new, facts.model_dump())


def _make(config: JudgeConfig, folder: Path, answers: Sequence[SampledAnswer]) -> None:
    _check_unused(config, folder, answers)
    if config.purpose == "verdict" and config.per_prompt > 1:
        raise OrpoError("--per-prompt: a verdict asks each prompt once; it is for --for pairs.")
    if config.purpose == "verdict":
        plan = plan_verdict(answers, seed=config.seed)
    else:
        plan = plan_pairs(answers, per_prompt=config.per_prompt, seed=config.seed)
    facts = SessionFacts(
        purpose=config.purpose,
        seed=config.seed,
        per_prompt=config.per_prompt,
        prompts=plan.prompts,
        items=plan.items,
        equal=plan.equal,
        left_out=plan.left_out,
        answers_sum=sum_of(answers),
    )
    with replacing(folder / ANSWERS) as new:
        append_answers(new, answers)
    save_facts(folder, facts)


def _check_unused(config: JudgeConfig, folder: Path, answers: Sequence[SampledAnswer]) -> None:
    """Raise OrpoError for a folder with anything but the answers, which a killed start leaves."""
    copy = folder / ANSWERS
    others = {path.name for path in folder.iterdir()} - {LOCK}
    if others == {ANSWERS} and not any(map(copy.samefile, config.answers)):
        with suppress(OrpoError):
            others = set() if sum_of(load_answers(copy)) == sum_of(answers) else others
    if others:
        raise OrpoError(f"{folder} holds other files and no session. Name another with --output.")


def _check_same(config: JudgeConfig, folder: Path, answers: Sequence[SampledAnswer] | None) -> None:
    """Raise OrpoError, with what to do, if a folder's session is not the one that is asked for."""
    facts = load_facts(folder)
    changed = []
    if answers is not None and sum_of(answers) != facts.answers_sum:
        changed.append("the answers are others")
    for name, flag in (("purpose", "--for"), ("per_prompt", "--per-prompt"), ("seed", "--seed")):
        given = name in config.model_fields_set
        if given and (was := getattr(facts, name)) != (now := getattr(config, name)):
            changed.append(f"{flag} was {was}, now {now}")
    if changed:
        raise OrpoError(
            f"{folder} holds a session that began otherwise: {'; '.join(changed)}. Go on with it "
            f"(orpo-mlx judge {folder}), or name another folder with --output."
        )


def _now() -> str:
    return dt.datetime.now().astimezone().isoformat(timespec="milliseconds")
