"""What a session is made of: files of answers and the text of guidelines. Imports no mlx."""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path

from orpo_mlx.errors import OrpoError
from orpo_mlx.files import check_regular
from orpo_mlx.judging.answers import SampledAnswer, load_answers


def read_answers(files: Sequence[Path]) -> list[SampledAnswer]:
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
    return sha256("\n".join(sorted(a.model_dump_json() for a in answers)).encode()).hexdigest()


def read_text(file: Path, flag: str = "") -> str:
    """A text that a person wrote; raises OrpoError, which names the flag, if it is not one."""
    check_regular(file)
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise OrpoError(f"{flag}{file}: cannot be read ({why}).") from None
