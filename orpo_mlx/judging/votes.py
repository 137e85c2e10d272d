"""votes.jsonl: what people preferred, a row a vote, only ever appended. Imports no mlx."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.judging.json_lines import JsonRow, append_rows, load_rows
from orpo_mlx.judging.plan import PlannedItem

LONGEST_NAME = 60  # characters of a judge's
Choice = Literal["first", "second", "tie", "both_bad", "skip"]


class EditedAnswer(JsonRow):
    """A text that a judge wrote, better than the answer it was begun from."""

    of: str  # id of that answer
    text: str


class Vote(JsonRow):
    """One vote on two answers, `first` on the left. An `undo` takes the vote of that id back.

    `vote` is made by who sends it, so that the same one sent twice is one.
    """

    vote: str
    judge: str
    item: str
    first: str  # id of the answer that was shown on the left, or above
    second: str
    choice: Choice
    repeat_of: str | None = None  # the item that this one shows again with its sides swapped
    edit: EditedAnswer | None = None
    note: str = ""
    time: str  # ISO 8601
    undo: str | None = None

    @property
    def better(self) -> str | None:
        """Id of the preferred answer, None if there is none."""
        return {"first": self.first, "second": self.second}.get(self.choice)

    @property
    def worse(self) -> str | None:
        """Id of the other one."""
        return {"first": self.second, "second": self.first}.get(self.choice)


def load_votes(file: Path) -> list[Vote]:
    """The rows of a file, none if it is not there; a last line that a kill cut is left out."""
    return load_rows(file, Vote) if file.exists() else []


def append_votes(file: Path, votes: Iterable[Vote]) -> None:
    """Append rows and sync them."""
    append_rows(file, votes)


def check_on_items(votes: Iterable[Vote], items: Mapping[str, PlannedItem], file: Path) -> None:
    """Raise OrpoError that names the votes of a file which are not on the answers of their item.

    Votes on other items than these are left alone.
    """
    problems = [
        f"vote {vote.vote!r}: its answers are not those of item {vote.item!r}"
        for vote in votes
        if (item := items.get(vote.item))
        and (vote.first, vote.second, vote.repeat_of) != (item.first, item.second, item.repeat_of)
    ]
    if problems:
        raise collected(f"{file}: these votes are not on what was shown:", problems)


def effective_votes(rows: Sequence[Vote]) -> list[Vote]:
    """The votes that hold, in order: of each judge the first on an item that was not undone."""
    undone = {row.undo for row in rows if row.undo}
    votes = dict[tuple[str, str], Vote]()
    for row in rows:
        if not row.undo and row.vote not in undone:
            votes.setdefault((row.judge, row.item), row)
    return list(votes.values())


def judge_name(name: str) -> str:
    """A judge's name as it is kept; raises OrpoError if it is empty or too long."""
    name = " ".join(name.split())
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise OrpoError(
            f"A judge's name must have 1 to {LONGEST_NAME} printable characters, found {name!r}."
        )
    return name
