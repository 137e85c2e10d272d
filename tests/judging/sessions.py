"""Answers, votes and sessions for tests."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orpo_mlx.config.judging import JudgeConfig
from orpo_mlx.judging.answers import AnswerSource, SampledAnswer, append_answers
from orpo_mlx.judging.session import Session, open_session
from orpo_mlx.judging.votes import Vote

TIME = "2000-01-01T00:00:00+00:00"


def source(name: str = "base", **changes: Any) -> AnswerSource:
    settings = {
        "name": name,
        "model": "m",
        "temperature": 0.8,
        "max_tokens": 64,
        "thinking": False,
        "template_date": "2000-01-01",
    }
    return AnswerSource.model_validate(settings | changes)


def answer(
    text: str, prompt: str = "Prompt?", number: int = 0, name: str = "base", **changes: Any
) -> SampledAnswer:
    """An answer, its id made of source, prompt and number."""
    values = {
        "id": f"{name}/{prompt}/{number}",
        "prompt": prompt,
        "source": source(name),
        "number": number,
        "seed": 0,
        "text": text,
        "finish": "stop",
        "tokens": 3,
    }
    return SampledAnswer.model_validate(values | changes)


def two_models(count: int, names: Sequence[str] = ("one", "two")) -> list[SampledAnswer]:
    """One answer of each of two models to each prompt."""
    texts = ("Do this {} times.", "1. Do this.\n2. Then that, {} times.")
    return [
        answer(text.format(n), f"Prompt {n}?", name=name)
        for name, text in zip(names, texts, strict=True)
        for n in range(count)
    ]


def several(count: int, name: str = "base") -> list[SampledAnswer]:
    """Three answers of one model to each prompt, the last one unlike the others."""
    texts = ("Do this {} times now.", "Do this {} times later.", "Never, says {}, the old man.")
    return [
        answer(text.format(n), f"Prompt {n}?", number, name)
        for n in range(count)
        for number, text in enumerate(texts)
    ]


def vote(item: str, first: str, second: str, choice: str, **changes: Any) -> Vote:
    judge = changes.get("judge", "you")
    values = {"vote": f"{judge}-{item}", "judge": judge, "item": item, "time": TIME}
    values |= {"first": first, "second": second, "choice": choice}
    return Vote.model_validate(values | changes)


@contextmanager
def opened(
    folder: Path, answers: Iterable[SampledAnswer] = (), **options: Any
) -> Iterator[Session]:
    """A session of answers in answers.jsonl of a folder, which are written if they are given."""
    file = folder / "answers.jsonl"
    append_answers(file, answers)
    with open_session(JudgeConfig(answers=[file], **options), lambda event: None) as session:
        yield session


def votes_on(first: SampledAnswer, second: SampledAnswer, choices: str) -> list[Vote]:
    """One vote of each of several judges: > the first, < the second, = a tie, ! both bad."""
    names = {">": "first", "<": "second", "=": "tie", "!": "both_bad", "-": "skip"}
    return [
        vote("i", first.id, second.id, names[choice], judge=f"judge {number}")
        for number, choice in enumerate(choices)
    ]


def vote_next(session: Session, judge: str, choice: Any = "first", **more: Any) -> str:
    """Vote on what is shown next; its id."""
    item = session.next_item(judge)
    assert item is not None
    session.vote(judge, f"{judge}-{item.id}", item.id, choice, **more)
    return item.id


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of each, but of the lock, which has the time."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}
