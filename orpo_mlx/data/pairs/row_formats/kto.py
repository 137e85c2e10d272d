"""One answer a row and whether it is good, as for KTO; rows of one prompt may be far apart."""

import json
import pickle
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b

from orpo_mlx.data.pairs.columns import (
    CONVERSATIONS,
    begins_with_prompt,
    copied_prompt,
    first_column,
    guess_of,
    has_content,
    is_conversation,
    prompt_columns,
    truth,
)
from orpo_mlx.data.pairs.messages import SingleAnswer
from orpo_mlx.data.pairs.row_format import FormatSpec, Guess, Mapped, RowFormat, Values
from orpo_mlx.data.pairs.single_answers import COMPLETIONS, read_answer
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import Row

LABELS = ("label", "kto_tag")
NO_BAD = "good answer without a bad one to the same prompt"
NO_GOOD = "bad answer without a good one to the same prompt"


def _guess(values: Values, mapped: Mapped) -> Iterator[Guess]:
    label = first_column(values, mapped, "label", LABELS, lambda v: truth(v) is not None)
    if not label:
        return
    prompts = list(prompt_columns(values, mapped))
    answer = first_column(values, mapped, "completion", COMPLETIONS, has_content)
    if not answer:
        answer = next((c for c in CONVERSATIONS if is_conversation(values.get(c))), "")
        prompts = []
        if not answer:
            return
    columns = {"completion": answer, "label": label}
    if begins_with_prompt(values[answer]):
        yield guess_of("kto", columns, copied_prompt(prompts))
        return
    yield from (guess_of("kto", columns, prompt) for prompt in prompts)


def _describe(row_format: RowFormat, values: Sequence[Values]) -> str:
    completion, label = row_format.columns["completion"], row_format.columns["label"]
    true, false = (
        ("true", "false")
        if all(isinstance(v.get(label), bool) for v in values)
        else ("true or 1", "false or 0")
    )
    return f'unpaired, "{completion}" with "{label}" {true} against {false} of the same prompt'


def _read(row: Row, row_format: RowFormat, report: ReadReport) -> list[SingleAnswer]:
    column = row_format.columns["label"]
    label = row.values.get(column)
    good = truth(label)
    if good is None:
        fault = f'"{column}" must be true or false (or 1 or 0), found {label!r}'
        return read_answer(row, row_format, "label", None, report, fault)
    return read_answer(row, row_format, "label", float(good), report)


def _pair_up(
    answers: Iterable[SingleAnswer], row_format: RowFormat, report: ReadReport
) -> Iterator[tuple[SingleAnswer, SingleAnswer]]:
    """Each good answer with a bad one of the same prompt, as they come; the rest is counted."""
    waiting: dict[tuple[bytes, float], deque[bytes]] = {}
    for answer in answers:
        key = _prompt_key(answer)
        if others := waiting.get((key, 1 - answer.score)):
            other: SingleAnswer = pickle.loads(zlib.decompress(others.popleft()))
            if not others:
                del waiting[key, 1 - answer.score]
            yield (answer, other) if answer.score else (other, answer)
        else:
            # Packed: in a file sorted by label half of all answers wait.
            packed = zlib.compress(pickle.dumps(answer), level=1)
            waiting.setdefault((key, answer.score), deque()).append(packed)
    for (_, score), left in waiting.items():
        report.leave_out(NO_BAD if score else NO_GOOD, len(left))


def _prompt_key(answer: SingleAnswer) -> bytes:
    prompt = json.dumps([answer.prompt, answer.tools], sort_keys=True)
    return blake2b(prompt.encode(), digest_size=16).digest()


FORMAT = FormatSpec(("kto",), _guess, _describe, _read, _pair_up)
