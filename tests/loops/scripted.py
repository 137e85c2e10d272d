"""A loop whose commands are played: files as sample, judge and train leave them, without a model.

What the commands are given, and what is done with their files, is the loop's own.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from orpo_mlx.config.judging import JudgeConfig, LoopConfig
from orpo_mlx.data.pairs.messages import as_messages
from orpo_mlx.data.pairs.split import hash_prompt
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event, Notice
from orpo_mlx.judging.answers import AnswerSource, SampledAnswer, answer_id, append_answers
from orpo_mlx.judging.session import Session, ShownItem, open_session
from orpo_mlx.judging.to_pairs import write_pairs
from orpo_mlx.judging.verdict import build_verdict, verdict_facts, verdict_sentences
from orpo_mlx.judging.votes import Choice, EditedAnswer
from orpo_mlx.loops.stages import LoopResult, run_loop

Words = Sequence[str]
# The commands of a round, and the folder of the loop that is played.
ALL = ["sample pairs", "judge pairs", "train", "sample verdict", "judge verdict"]
LOOP = Path("loops/evening")


def save_prompts(file: Path, count: int, start: int = 0) -> Path:
    lines = [f"What is {number} plus {number}?" for number in range(start, start + count)]
    file.write_text("\n".join(lines) + "\n")
    return file


def save_checkpoint(folder: Path, step: int) -> None:
    """What a training leaves that was stopped."""
    checkpoint = f"checkpoints/step-{step:07d}"
    (folder / checkpoint).mkdir(parents=True)
    for file in ("config.yaml", f"{checkpoint}/state.json"):
        (folder / file).write_text("{}")


def options(words: Words) -> dict[str, list[str]]:
    """The values of each flag; those before the first one under ""."""
    values: dict[str, list[str]] = {"": []}
    flag = ""
    for word in words:
        if word.startswith("-"):
            flag = word
            values.setdefault(flag, [])
        else:
            values[flag].append(word)
    return values


def prefers_new(item: ShownItem) -> Choice:
    """A judge who prefers answers of the newest model, and of one model those of lower number."""
    ranks = [(-len(a.source.adapter or ""), a.source.name, a.number) for a in item[3:]]
    return "first" if ranks[0] < ranks[1] else "second"


class Commands:
    """Plays `sample`, `judge` and `train`, and keeps what they were given.

    `before` is called with the words of each command and may end it: with a status, or an error.
    """

    def __init__(self) -> None:
        self.given: list[list[str]] = []
        self.notices: list[str] = []
        self.before: Callable[[Words], int] = lambda words: 0
        self.choose: Callable[[ShownItem], Choice] = prefers_new
        self.edit: EditedAnswer | None = None  # `of` is replaced by the item's first answer
        self.thought = ""
        self.asked = 0
        self.edits: Any = "keep"

    def __call__(self, words: Words) -> int:
        self.given.append(list(words))
        if status := self.before(words):
            return status
        return {"sample": self._sample, "judge": self._judge, "train": self._train}[words[0]](
            options(words[1:])
        )

    @property
    def names(self) -> list[str]:
        """The commands that were called, in order, with what sample and judge are for."""
        return [f"{words[0]} {_purpose(words)}".strip() for words in self.given]

    def count(self, words: str) -> int:
        """How many commands were given these words, in this order."""
        return sum(f" {words} " in f"{' '.join(given)} " for given in self.given)

    def loop(self, prompts: Path, **changes: Any) -> LoopResult:
        """One call of the loop "evening" in the current folder."""
        given = {"name": "evening", "model": "base", "prompts": [str(prompts)], "pair_prompts": 4}
        given |= {"verdict_prompts": 8, "template_date": "2026-01-02"}
        config = LoopConfig.model_validate(given | changes)
        return run_loop(config, self, self._ask, self._hear)

    def _ask(self) -> Any:
        self.asked += 1
        return self.edits

    def _hear(self, event: Event) -> None:
        assert isinstance(event, Notice)
        self.notices.append(event.text)

    def _sample(self, given: dict[str, list[str]]) -> int:
        output = Path(given["--output"][0])
        assert output.exists() == ("--resume" in given)
        output.unlink(missing_ok=True)
        for adapter in given["--adapter"]:
            source = self._source(None if adapter == "base" else adapter)
            for line in Path(given["--prompts"][0]).read_text().splitlines():
                append_answers(
                    output,
                    [self._answer(json.loads(line), source, n) for n in range(int(given["-n"][0]))],
                )
        return 0

    def _source(self, adapter: str | None) -> AnswerSource:
        return AnswerSource(
            name=Path(adapter).name if adapter else "base",
            model="base",
            adapter=adapter,
            temperature=0.8,
            max_tokens=256,
            thinking=True,
            template_date="2026-01-02",
        )

    def _answer(self, row: dict[str, Any], source: AnswerSource, number: int) -> SampledAnswer:
        prompt = row.get("prompt") or row["messages"]
        key = hash_prompt(as_messages(prompt), row.get("tools"))
        return SampledAnswer(
            id=answer_id(key, source, 0, number),
            prompt=prompt,
            source=source,
            number=number,
            seed=0,
            thought=self.thought,
            text=f"{source.name} answers {key % 1000} for the time of number {number}",
            finish="stop",
            tokens=9,
        )

    def _judge(self, given: dict[str, list[str]]) -> int:
        folder, purpose = Path(given["--output"][0]), given["--for"][0]
        config = JudgeConfig.model_validate(
            {"answers": given[""], "purpose": purpose, "output": folder}
        )
        with open_session(config, lambda event: None) as session:
            if "--result" not in given:
                self._vote(session)
            if purpose == "pairs":
                if session.votes:
                    write_pairs(folder, given.get("--edits", ["keep"])[0])  # type: ignore[arg-type]
            else:
                verdict = build_verdict(session.answers, session.votes, session.facts)
                sentences = [*verdict_sentences(verdict), "Nothing was forgotten."]
                facts = verdict_facts(verdict) | {"sentences": sentences}
                (folder / "verdict.json").write_text(json.dumps(facts))
        return 0

    def _vote(self, session: Session) -> None:
        while item := session.next_item("you"):
            edit = self.edit.model_copy(update={"of": item.first.id}) if self.edit else None
            session.vote("you", f"vote-{item.id}", item.id, self.choose(item), edit=edit)
        session.end()

    def _train(self, given: dict[str, list[str]]) -> int:
        for file in given["--data"]:
            assert Path(file).is_file()
        folder = Path(given["--output"][0])
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        for name in ("config.yaml", "adapters.safetensors", "adapter_config.json"):
            (folder / name).write_text("{}")
        return 0


def _purpose(words: Words) -> str:
    return next(
        (p for p in ("pairs", "verdict") if words[0] != "train" and f"{p}-" in str(words)), ""
    )


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except OrpoError as error:
        return str(error)
    raise AssertionError("no error")
