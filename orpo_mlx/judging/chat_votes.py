"""The votes of a chat, in the files of a session: answers.jsonl and votes.jsonl of one folder.

Its items are the messages that were answered. Imports no mlx.
"""

import datetime as dt
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

from orpo_mlx.errors import OrpoError
from orpo_mlx.judging.answers import SampledAnswer, append_answers, load_answers
from orpo_mlx.judging.votes import (
    Choice,
    EditedAnswer,
    Vote,
    append_votes,
    effective_votes,
    load_votes,
)

ANSWERS, VOTES, SESSION = "answers.jsonl", "votes.jsonl", "session.json"
JUDGE = "you"


class ChatVotes:
    """The folder of a chat, in which nothing is written but votes and the answers they are about.

    Who makes one holds the folder's lock. Raises OrpoError for the folder of a session, and for
    files that cannot be read.
    """

    def __init__(self, folder: Path):
        if (folder / SESSION).exists():
            raise OrpoError(
                f"{folder} is a session of orpo-mlx judge: name another folder with --output."
            )
        self.folder = folder
        answers = load_answers(folder / ANSWERS) if (folder / ANSWERS).exists() else []
        self._ids = {answer.id for answer in answers}
        self._numbers = Counter[tuple[str, str]]()
        for answer in answers:
            key = answer.prompt_id, answer.source.name
            self._numbers[key] = max(self._numbers[key], answer.number + 1)
        self._rows = load_votes(folder / VOTES)

    @property
    def count(self) -> int:
        """How many votes hold."""
        return len(effective_votes(self._rows))

    def next_number(self, prompt_id: str, source: str) -> int:
        """The number of a source's next answer to a prompt: no other one has it."""
        self._numbers[prompt_id, source] += 1
        return self._numbers[prompt_id, source] - 1

    def add(
        self,
        item: str,
        shown: Sequence[SampledAnswer],  # the two answers, or the only one
        choice: Choice,
        *,
        edit: EditedAnswer | None = None,
        earlier: Vote | None = None,
    ) -> Vote:
        """Append a vote, and sync it; `earlier`, the same item's vote, is taken back."""
        vote = Vote(
            vote=uuid4().hex,
            judge=JUDGE,
            item=item,
            first=shown[0].id,
            second=shown[-1].id,
            choice=choice,
            edit=edit,
            time=dt.datetime.now().astimezone().isoformat(timespec="seconds"),
        )
        rows = [_undo(earlier, vote.time), vote] if earlier else [vote]
        append_answers(self.folder / ANSWERS, self._new(shown))
        append_votes(self.folder / VOTES, rows)
        self._ids |= {answer.id for answer in shown}
        self._rows += rows
        return vote

    def _new(self, shown: Sequence[SampledAnswer]) -> list[SampledAnswer]:
        """Those of the answers that the file does not have, each once."""
        return list({a.id: a for a in shown if a.id not in self._ids}.values())


def _undo(vote: Vote, time: str) -> Vote:
    """The row that takes a vote back."""
    changes = {"vote": uuid4().hex, "edit": None, "undo": vote.vote, "time": time}
    return vote.model_copy(update=changes)
