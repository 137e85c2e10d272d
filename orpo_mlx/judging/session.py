"""A session of judging: one folder with answers, items and votes, held by one process.

answers.jsonl is a copy, so that the folder stays whole; session.json has the plan. No mlx.
"""

import datetime as dt
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from threading import RLock
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from orpo_mlx.config.judging import JudgeConfig
from orpo_mlx.data.pairs.messages import Message
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback
from orpo_mlx.files import check_regular, is_occupied, load_json_object, replacing, save_json
from orpo_mlx.judging.answers import SampledAnswer, append_answers, load_answers
from orpo_mlx.judging.json_lines import JsonRow
from orpo_mlx.judging.plan import PlannedItem, plan_pairs, plan_verdict
from orpo_mlx.judging.votes import (
    Choice,
    EditedAnswer,
    Vote,
    append_votes,
    effective_votes,
    load_votes,
)
from orpo_mlx.run_folder.lock import locked

ANSWERS, VOTES, SESSION, GUIDELINES = (
    "answers.jsonl",
    "votes.jsonl",
    "session.json",
    "guidelines.md",
)
LONGEST_NAME = 60  # characters of a judge's
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
    answers_sum: str  # SHA-256 of the answers that it was made of
    stops: list[int] = Field(default=[])  # items judged at each end before all were
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
                f"{folder / ANSWERS}: {len(missing)} answers of {SESSION} are not in it."
            )
        self._rows = load_votes(folder / VOTES)
        self._lock = RLock()

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
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def next_item(self, judge: str) -> ShownItem | None:
        """The first item that this judge has not voted on or skipped; None: all are done."""
        with self._lock:
            done = self._done(judge)
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
        Raises KeyError for an item that does not exist.
        """
        with self._lock:
            item = self._items[item_id]
            if item_id in self._done(judge) or any(row.vote == vote_id for row in self._rows):
                return
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

    def undo(self, judge: str) -> bool:
        """Take this judge's last vote back, so that its item is next; False if there is none."""
        with self._lock:
            own = [vote for vote in self.votes if vote.judge == judge_name(judge)]
            if not own:
                return False
            last = max(own, key=self._rows.index)
            changes = {"vote": f"undo-{last.vote}", "undo": last.vote, "time": _now()}
            self._append(last.model_copy(update=changes | {"edit": None, "note": ""}))
            return True

    def progress(self, judge: str) -> tuple[int, int]:
        """How many items this judge has done, repeats too, and of how many."""
        with self._lock:
            return len(self._done(judge)), len(self._items)

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
        """Open a session again that was over."""
        with self._lock:
            if self.ended:
                self._save(ended=None)

    def _done(self, judge: str) -> set[str]:
        name = judge_name(judge)
        return {vote.item for vote in self.votes if vote.judge == name}

    def _append(self, row: Vote) -> None:
        append_votes(self.folder / VOTES, [row])
        self._rows.append(row)

    def _save(self, **changes: Any) -> None:
        self.facts = self.facts.model_copy(update=changes)
        save_facts(self.folder, self.facts)


@contextmanager
def open_session(config: JudgeConfig, report: Callback) -> Iterator[Session]:
    """The session of these answers, or of this folder: made, or gone on with, under its lock.

    Raises OrpoError for answers that cannot be judged, and for a folder that holds another session
    or anything else.
    """
    folder = folder_of(config)
    is_here = (folder / SESSION).exists()
    answers = None if is_here and list(config.answers) == [folder] else _read_answers(config)
    with locked(folder, report):
        if is_here:
            _check_same(config, folder, answers)
        else:
            assert answers is not None
            _make(config, folder, answers)
        if config.guidelines:
            _write(folder / GUIDELINES, _read_guidelines(config.guidelines))
        session = Session(folder)
        session.go_on()
        yield session


def folder_of(config: JudgeConfig) -> Path:
    """The folder of a session: the one that is gone on with, --output, or next to the answers."""
    first = config.answers[0]
    if len(config.answers) == 1 and (first / SESSION).is_file():
        return first
    return config.output or first.parent / f"judged-{config.purpose}"


def load_facts(folder: Path) -> SessionFacts:
    """session.json; raises OrpoError if it is not one."""
    file = folder / SESSION
    content = load_json_object(file)
    try:
        return SessionFacts.model_validate(content)
    except ValidationError as error:
        fields = sorted({".".join(map(str, fault["loc"][:1])) for fault in error.errors()})
        raise OrpoError(f"{file}: wrong or missing: {', '.join(fields)}.") from None


def save_facts(folder: Path, facts: SessionFacts) -> None:
    """Write session.json."""
    with replacing(folder / SESSION) as new:
        save_json(new, facts.model_dump())


def judge_name(name: str) -> str:
    """A judge's name as it is kept; raises OrpoError if it is empty or too long."""
    name = " ".join(name.split())
    if not 0 < len(name) <= LONGEST_NAME:
        raise OrpoError(f"A judge's name must have 1 to {LONGEST_NAME} characters, found {name!r}.")
    return name


def _read_answers(config: JudgeConfig) -> list[SampledAnswer]:
    folders = [path for path in config.answers if path.is_dir()]
    if folders:
        raise OrpoError(
            f"{folders[0]} holds no {SESSION}: name the files of orpo-mlx sample, or the folder of "
            "a session."
        )
    answers = [answer for file in config.answers for answer in load_answers(file)]
    if not answers:
        raise OrpoError(f"{', '.join(map(str, config.answers))}: there are no answers in it.")
    return list({answer.id: answer for answer in answers}.values())


def _make(config: JudgeConfig, folder: Path, answers: Sequence[SampledAnswer]) -> None:
    if is_occupied(folder):
        raise OrpoError(f"{folder} holds other files and no session. Name another with --output.")
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
        answers_sum=_sum_of(answers),
    )
    with replacing(folder / ANSWERS) as new:
        append_answers(new, answers)
    save_facts(folder, facts)


def _check_same(config: JudgeConfig, folder: Path, answers: Sequence[SampledAnswer] | None) -> None:
    """Raise OrpoError, with what to do, if a folder's session is not the one that is asked for."""
    facts = load_facts(folder)
    changed = []
    if answers is not None and _sum_of(answers) != facts.answers_sum:
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


def _sum_of(answers: Sequence[SampledAnswer]) -> str:
    return sha256("\n".join(a.model_dump_json() for a in answers).encode()).hexdigest()


def _read_guidelines(file: Path) -> str:
    check_regular(file)
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise OrpoError(f"--guidelines {file}: cannot be read ({why}).") from None


def _write(file: Path, text: str) -> None:
    with replacing(file) as new:
        new.write_text(text, encoding="utf-8")


def _now() -> str:
    return dt.datetime.now().astimezone().isoformat(timespec="milliseconds")
