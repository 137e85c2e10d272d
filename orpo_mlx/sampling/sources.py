"""Who answers: the base, or the base with an adapter, each with the facts that its answers keep."""

import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from orpo_mlx.config.judging import DrawOptions, SampleConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.files import user_path
from orpo_mlx.judging.answers import (
    BASE_NAME,
    AnswerSource,
    SampledAnswer,
    adapter_sum,
    file_sum,
)
from orpo_mlx.loading import Template, template_of
from orpo_mlx.model.adapters import load_adapter_config


class Answerer(NamedTuple):
    """A source of answers: its facts, its adapter's folder, and how its text is made."""

    source: AnswerSource
    folder: Path | None
    template: Template


def answerers_of(config: SampleConfig, kept: Sequence[SampledAnswer]) -> list[Answerer]:
    """The sources in the order in which they were named.

    Where no date is given, that of answers which are kept holds. Raises OrpoError for every folder
    that holds no adapter, and for one that is named twice.
    """
    words = config.adapter or [BASE_NAME]
    folders = [None if word == BASE_NAME else user_path(word) for word in words]
    faults = []
    for folder in filter(None, folders):
        try:
            load_adapter_config(folder)
        except OrpoError as error:
            faults.append(str(error))
    locations = [folder and folder.resolve() for folder in folders]
    faults += [
        f"--adapter {word}: is given twice."
        for number, word in enumerate(words)
        if locations[number] in locations[:number]
    ]
    if faults:
        raise OrpoError("\n".join(faults))
    dates = {row.source.name: row.source.template_date for row in kept}
    like = _like(config, folders, kept, dates)
    return [
        answerer_of(config, folder, name, dates, like)
        for folder, name in zip(folders, _names(folders), strict=True)
    ]


def _like(
    config: SampleConfig,
    folders: Sequence[Path | None],
    kept: Sequence[SampledAnswer],
    dates: Mapping[str, str],
) -> Path | None:
    """The adapter whose settings of the template the base has; None where it answered alone."""
    alone = answerer_of(config, None, BASE_NAME, dates).source
    if any(row.source == alone for row in kept):
        return None
    return next(filter(None, folders), None)


def _names(folders: Sequence[Path | None]) -> list[str]:
    """What reports call each: its folder's name, its path where two have that name."""
    counts = Counter(folder.resolve().name for folder in folders if folder)
    return [
        BASE_NAME
        if folder is None
        else str(folder)
        if counts[folder.resolve().name] > 1 or folder.resolve().name == BASE_NAME
        else folder.resolve().name
        for folder in folders
    ]


def answerer_of(
    config: DrawOptions,
    folder: Path | None,
    name: str,
    dates: Mapping[str, str],
    like: Path | None = None,
) -> Answerer:
    """The base, or an adapter's folder, as a source of that name; `dates` are those kept.

    The base's text is made as that of the adapter `like`, with which it is compared: a base that
    thinks next to an adapter that does not would show who answered.
    """
    template = template_of(config, folder or like)
    if config.template_date is None and name in dates:
        template = template._replace(date=dt.date.fromisoformat(dates[name]))
    source = AnswerSource(
        name=name,
        model=config.model,
        revision=config.revision,
        adapter=str(folder) if folder else None,
        adapter_sum=adapter_sum(folder) if folder else None,
        temperature=config.temperature,
        max_tokens=config.max_tokens,
        thinking=template.thinking != "off",
        template_date=template.date.isoformat(),
        template_args=template.arguments,
        chat_template=file_sum(config.chat_template) if config.chat_template else None,
        eos_token=config.eos_token,
    )
    return Answerer(source, folder, template)
