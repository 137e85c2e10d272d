"""The votes of a chat: a session for pairs that grows, an item for each two answers voted on.

What `orpo-mlx judge` makes of a session it makes of this one, and others may judge it. No mlx.
"""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

from orpo_mlx.errors import OrpoError
from orpo_mlx.judging.answers import SampledAnswer, append_answers, load_answers
from orpo_mlx.judging.plan import PlannedItem
from orpo_mlx.judging.session import (
    ANSWERS,
    SESSION,
    VOTES,
    SessionFacts,
    load_facts,
    save_facts,
)
from orpo_mlx.judging.votes import (
    Choice,
    EditedAnswer,
    Vote,
    append_votes,
    effective_votes,
    load_votes,
)

JUDGE = "you"
GROWING = ""  # in place of the sum of the answers that a session was made of
EMPTY = SessionFacts(
    purpose="pairs", seed=0, per_prompt=1, prompts=0, items=[], answers_sum=GROWING
)


class ChatVotes:
    """The folder of a chat, in which nothing is written but votes and the answers they are about.

    Who makes one holds the folder's lock. Raises OrpoError for the folder of another session, and
    for files that cannot be read.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._facts = load_facts(folder) if (folder / SESSION).exists() else EMPTY
        if self._facts.answers_sum != GROWING:
            raise OrpoError(
                f"{folder} is a session of orpo-mlx judge: name another folder with --output."
            )
        file = folder / ANSWERS
        self._answers = {a.id: a for a in load_answers(file)} if file.exists() else {}
        self._rows = load_votes(folder / VOTES)

    @property
    def count(self) -> int:
        """How many votes hold."""
        return len(effective_votes(self._rows))

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
            time=dt.datetime.now().astimezone().isoformat(timespec="milliseconds"),
        )
        rows = [_undo(earlier, vote.time), vote] if earlier else [vote]
        new = {answer.id: answer for answer in shown if answer.id not in self._answers}
        append_answers(self.folder / ANSWERS, new.values())
        self._answers |= new
        self._plan(vote)
        append_votes(self.folder / VOTES, rows)
        self._rows += rows
        return vote

    def _plan(self, vote: Vote) -> None:
        """Let the session have what was voted on: two answers as an item."""
        items = {item.id: item for item in self._facts.items}
        if vote.first != vote.second:
            items[vote.item] = PlannedItem(id=vote.item, first=vote.first, second=vote.second)
        prompts = {self._answers[item.first].prompt_id for item in items.values()}
        changes = {"items": [*items.values()], "prompts": len(prompts), "ended": None}
        self._facts = self._facts.model_copy(update=changes)
        save_facts(self.folder, self._facts)


def _undo(vote: Vote, time: str) -> Vote:
    """The row that takes a vote back."""
    changes = {"vote": f"undo-{vote.vote}", "edit": None, "undo": vote.vote, "time": time}
    return vote.model_copy(update=changes)
