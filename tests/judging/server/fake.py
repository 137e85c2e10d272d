"""A session in memory, and answers for it, among them what models write to be seen through."""

from pathlib import Path
from typing import Any

from orpo_mlx.judging.answers import AnswerSource, SampledAnswer
from orpo_mlx.judging.session import ShownItem
from orpo_mlx.judging.votes import Choice, EditedAnswer


def source(name: str = "base") -> AnswerSource:
    return AnswerSource(
        name=name,
        model="m",
        temperature=0.8,
        max_tokens=64,
        thinking=True,
        template_date="2026-01-01",
    )


def answer(number: int, text: str, **changes: Any) -> SampledAnswer:
    """An answer to "Hi"."""
    facts = {"id": f"answer-{number}", "prompt": "Hi", "source": source(), "number": number}
    facts |= {"seed": 0, "text": text, "finish": "stop", "tokens": 5, "logp": -1.0}
    return SampledAnswer(**facts | changes)


def shown(number: int, **changes: Any) -> ShownItem:
    """An item with two plain answers."""
    item = ShownItem(
        id=f"item-{number}",
        messages=[{"role": "user", "content": f"Question {number}?"}],
        tools=None,
        first=answer(2 * number, f"Left {number}."),
        second=answer(2 * number + 1, f"Right {number}."),
    )
    return item._replace(**changes)


class FakeSession:
    """What the page needs of a session."""

    purpose = "pairs"
    folder = Path("judged")
    guidelines = ""

    def __init__(self, items: list[ShownItem]):
        self.items = {item.id: item for item in items}
        self.votes = dict[str, dict[str, tuple[str, Choice, EditedAnswer | None, str]]]()
        self.ended = False

    def next_item(self, judge: str) -> ShownItem | None:
        own = self.votes.get(judge, {})
        return next((item for item in self.items.values() if item.id not in own), None)

    def shown(self, item_id: str) -> ShownItem:
        return self.items[item_id]

    def vote(
        self,
        judge: str,
        vote_id: str,
        item_id: str,
        choice: Choice,
        *,
        edit: EditedAnswer | None,
        note: str,
    ) -> None:
        self.votes.setdefault(judge, {}).setdefault(item_id, (vote_id, choice, edit, note))

    def undo(self, judge: str, undo_id: str = "") -> bool:
        return bool(self.votes.get(judge)) and bool(self.votes[judge].popitem())

    def progress(self, judge: str) -> tuple[int, int]:
        return len(self.votes.get(judge, {})), len(self.items)

    def judges(self) -> list[str]:
        return list(self.votes)

    def end(self) -> None:
        self.ended = True
