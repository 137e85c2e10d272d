"""answers.jsonl: what models answered to prompts, a row an answer. Imports no mlx."""

from collections.abc import Iterable
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from orpo_mlx.data.pairs.messages import Message, as_messages
from orpo_mlx.data.pairs.split import hash_prompt
from orpo_mlx.errors import OrpoError
from orpo_mlx.judging.json_lines import JsonRow, append_rows, load_rows
from orpo_mlx.run_folder.folder import ADAPTER

BASE_NAME = "base"  # what the base without an adapter is called


class AnswerSource(JsonRow):
    """Who answered, and with which settings. Equal values are one source."""

    name: str  # what reports call it: base, or the adapter's folder
    model: str
    revision: str | None = None
    adapter: str | None = None
    adapter_sum: str | None = None  # a hash of the adapter's weights
    temperature: float
    max_tokens: int
    thinking: bool
    template_date: str  # ISO 8601
    template_args: dict[str, Any] = Field(default={})
    chat_template: str | None = None  # a hash of --chat-template
    eos_token: str | None = None


class SampledAnswer(JsonRow):
    """One answer. `text` has no thought and no end token."""

    id: str
    prompt: str | list[Message]
    tools: list[Any] | None = None
    group: str | None = None  # the value of --group-by's column
    source: AnswerSource
    number: int  # of the answers of one source to one prompt, from 0
    seed: int
    thought: str = ""
    text: str
    finish: Literal["stop", "length", "thought"]  # an end token, the limit, an end inside a thought
    tokens: int  # of thought and text, without the end token
    logp: float | None = None  # mean per response token, end token included; None where it is cut

    @property
    def cut(self) -> bool:
        """Whether the answer did not come to its end: it is never chosen nor rejected."""
        return self.finish != "stop"

    @property
    def messages(self) -> list[Message]:
        """The prompt as messages."""
        return as_messages(self.prompt)

    @property
    def prompt_id(self) -> str:
        """16 hexadecimal digits of the prompt's hash, by which splits draw, too."""
        return f"{hash_prompt(self.messages, self.tools):016x}"


def answer_id(prompt: int, source: AnswerSource, seed: int, number: int) -> str:
    """An answer's id, which follows from the prompt's hash, the source, the seed and the number."""
    text = f"{prompt} {source.model_dump_json()} {seed} {number}"
    return blake2b(text.encode(), digest_size=8).hexdigest()


def answer_message(text: str, thought: str = "") -> Message:
    """An answer as readers of pairs know it: its thought in a key of its own."""
    message: Message = {"role": "assistant", "content": text}
    return message | ({"reasoning_content": thought} if thought.strip() else {})


def adapter_sum(folder: Path) -> str:
    """SHA-256 of an adapter's weights in hexadecimal digits; raises OrpoError if there are none."""
    return file_sum(folder / ADAPTER[0])


def file_sum(file: Path) -> str:
    """A file's SHA-256 in hexadecimal digits; raises OrpoError if it cannot be read."""
    try:
        with file.open("rb") as stream:
            return file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise OrpoError(f"{file}: cannot be read ({error.strerror}).") from None


def folded(text: str) -> str:
    """A text for the comparison with others: without case, white space as one space."""
    return " ".join(text.casefold().split())


def load_answers(file: Path) -> list[SampledAnswer]:
    """The answers of a file, in order; raises OrpoError that names all that is wrong with it."""
    return load_rows(file, SampledAnswer)


def append_answers(file: Path, answers: Iterable[SampledAnswer]) -> None:
    """Append answers and sync them."""
    append_rows(file, answers)


def load_all_answers(files: list[Path]) -> list[SampledAnswer]:
    """The answers of all files, each id once; raises OrpoError if there are none."""
    if folders := [path for path in files if path.is_dir()]:
        raise OrpoError(
            f"{folders[0]} is not the folder of a session: name the files of orpo-mlx sample, or a "
            "folder that orpo-mlx judge has made."
        )
    answers = {answer.id: answer for file in files for answer in load_answers(file)}
    if not answers:
        raise OrpoError(f"{', '.join(map(str, files))}: no answers. Make some: orpo-mlx sample.")
    return list(answers.values())


def sum_of(answers: Iterable[SampledAnswer]) -> str:
    """A hash of answers in any order."""
    rows = sorted(answer.model_dump_json() for answer in answers)
    return blake2b("\n".join(rows).encode(), digest_size=16).hexdigest()
