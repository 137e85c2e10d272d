"""The prompts that are sampled for: of text files, of rows that hold prompts alone, of pairs.

Imports no mlx.
"""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from orpo_mlx.config.judging import SampleConfig
from orpo_mlx.data.pairs.load import (
    RECOGNIZED_ROWS,
    Message,
    PreferencePair,
    bad_rows_error,
    load_pairs,
    recognize,
)
from orpo_mlx.data.pairs.messages import as_messages
from orpo_mlx.data.pairs.split import hash_prompt
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import Row, Source, find_sources, iter_rows
from orpo_mlx.data.reading.splits import DATA_NAME, SPLITS
from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.events import Callback, Notice, log_once
from orpo_mlx.files import user_path
from orpo_mlx.read_options import reading_of
from orpo_mlx.training.samples.prompts import (
    SamplePrompt,
    prompt_lines,
    prompt_of_row,
    text_prompts,
)

FLAG = "--prompts"
HINT = 'A row looks like: {"prompt": "How do I ...?"}'


class AskedPrompt(NamedTuple):
    """A prompt of a source; `group` is what the column of --group-by holds."""

    location: str
    prompt: str | list[Message]
    tools: list[Any] | None
    group: str | None

    @property
    def messages(self) -> list[Message]:
        """The prompt as messages."""
        return as_messages(self.prompt)

    @property
    def hash(self) -> int:
        """64 bits of messages and tools."""
        return hash_prompt(self.messages, self.tools)


def load_prompts(config: SampleConfig, report: Callback) -> list[AskedPrompt]:
    """The prompts of all sources in order, each once; raises OrpoError for all that is wrong."""
    prompts, faults = list[AskedPrompt](), list[str]()
    for source in config.prompts:
        try:
            prompts += _prompts_in(source, config, report)
        except OrpoError as error:
            faults.append(str(error))
    if faults:
        raise OrpoError("\n".join(faults))
    if not prompts:
        raise OrpoError(f"{FLAG} {', '.join(config.prompts)}: no prompt is left.")
    if config.group_by and all(prompt.group is None for prompt in prompts):
        raise OrpoError(f"--group-by {config.group_by}: no row has a value in this column.")
    unique = {prompt.hash: prompt for prompt in reversed(prompts)}
    asked = [prompt for prompt in prompts if unique[prompt.hash] is prompt]
    if repeats := len(prompts) - len(asked):
        report(Notice(f"{repeats:,} x prompt that was there before: each is asked once"))
    return asked[: config.limit]


def _prompts_in(name: str, config: SampleConfig, report: Callback) -> list[AskedPrompt]:
    path = user_path(name)
    if path.is_file() and not DATA_NAME.fullmatch(path.name):
        return _of_text(name, path)
    log = log_once(report)
    sources = find_sources(
        [name],
        splits=SPLITS[:1],
        flag=FLAG,
        split=config.split,
        subset=config.subset,
        revision=config.data_revision,
        log=log,
    )
    if all(_holds_prompts_alone(source, config) for source in sources):
        return [prompt for source in sources for prompt in _of_rows(source, config, report)]
    pairs = load_pairs(
        [name],
        splits=SPLITS[:1],
        flag=FLAG,
        reading=reading_of(config),
        split=config.split,
        subset=config.subset,
        revision=config.data_revision,
        drop_bad=config.bad_rows == "drop",
        log=log,
    )
    return _of_pairs(pairs, _groups(sources, config.group_by))


def _of_text(name: str, path: Path) -> list[AskedPrompt]:
    prompts = text_prompts(name, prompt_lines(path, FLAG), [])
    if asked := [AskedPrompt(p.location, p.prompt, None, None) for p in prompts]:
        return asked
    raise OrpoError(f"{FLAG} {name}: the file is empty.")


def _holds_prompts_alone(source: Source, config: SampleConfig) -> bool:
    """Whether rows have a prompt, those without are faulty, and no format makes pairs of them."""
    first = list(islice(iter_rows(source, ReadReport()), RECOGNIZED_ROWS))
    if not first or config.format != "auto" or config.columns:
        return False
    if not any(("prompt" in row.values) != ("messages" in row.values) for row in first):
        return False
    try:
        recognize(first, reading_of(config), source.name)
    except OrpoError:
        return True
    return False


def _of_rows(source: Source, config: SampleConfig, report: Callback) -> list[AskedPrompt]:
    """The prompts of rows without answers; raises OrpoError that names every row without one."""
    read, asked = ReadReport(), list[AskedPrompt]()
    for row in iter_rows(source, read):
        faults: list[str] = []
        prompt = prompt_of_row(row.location, row.values, faults)
        for fault in faults:
            read.refuse(row.location, fault.removeprefix(f"{row.location}: "))
        if not faults:
            asked.append(_asked(prompt, _group_of(row, config.group_by)))
    if read.problems and config.bad_rows == "stop":
        raise bad_rows_error(read.problems, HINT)
    read.drop_bad()
    for reason, count in read.rows_left_out.items():
        report(Notice(f"left out: {count:,} x {reason}"))
    return asked


def _asked(prompt: SamplePrompt, group: str | None) -> AskedPrompt:
    value = prompt.prompt if isinstance(prompt.prompt, str) else prompt.messages
    return AskedPrompt(prompt.location, value, prompt.tools, group)


def _group_of(row: Row, column: str | None) -> str | None:
    value = row.values.get(column) if column else None
    return None if value is None else str(value)


def _groups(sources: list[Source], column: str | None) -> dict[str, str | None]:
    """The group of each row, by its location."""
    if not column:
        return {}
    rows = (row for source in sources for row in iter_rows(source, ReadReport()))
    return {row.location: _group_of(row, column) for row in rows}


def _of_pairs(pairs: list[PreferencePair], groups: Mapping[str, str | None]) -> list[AskedPrompt]:
    """The prompts of pairs; raises OrpoError for those that carry a template's own markers."""
    if rendered := [pair.location for pair in pairs if pair.raw]:
        raise collected(
            f"{FLAG}: these rows carry a chat template's markers; give their prompts as text or "
            "messages:",
            rendered,
        )
    return [
        AskedPrompt(pair.location, pair.prompt, pair.tools, _group_at(pair.location, groups))
        for pair in pairs
    ]


def _group_at(location: str, groups: Mapping[str, str | None]) -> str | None:
    """The group of a pair; one of two rows is located by both."""
    return groups.get(location, groups.get(location.rpartition("+")[0]))
