"""--resume: whether the answers of a file are those that the settings would give."""

from collections.abc import Iterator, Sequence

from orpo_mlx.config.judging import SampleConfig
from orpo_mlx.errors import collected
from orpo_mlx.judging.answers import BASE_NAME, AnswerSource, SampledAnswer
from orpo_mlx.sampling.prompts import AskedPrompt
from orpo_mlx.sampling.sources import Answerer

# Facts of a source that are not named as their option is.
_NAMES = {"adapter_sum": "the adapter's weights", "chat_template": "the text of --chat-template"}


def check_same(
    config: SampleConfig,
    kept: Sequence[SampledAnswer],
    answerers: Sequence[Answerer],
    prompts: Sequence[AskedPrompt],
) -> None:
    """Raise OrpoError that names every setting with which the answers were not made."""
    faults = [
        *_other_sources(kept, {answerer.source.name: answerer.source for answerer in answerers}),
        *_other_rows(config, kept, {f"{p.hash:016x}": p.group for p in prompts}),
    ]
    if faults:
        raise collected(
            f"--resume: {config.output} was made with other settings (give the same, or name "
            "another --output):",
            list(dict.fromkeys(faults)),
        )


def _other_sources(kept: Sequence[SampledAnswer], wanted: dict[str, AnswerSource]) -> Iterator[str]:
    for source in _unique(kept):
        if source.name not in wanted:
            yield f"it has answers of {source.name}: add --adapter {source.adapter or BASE_NAME}"
            continue
        for name in AnswerSource.model_fields:
            before, now = getattr(source, name), getattr(wanted[source.name], name)
            if before != now:
                option = _NAMES.get(name) or f"--{name.replace('_', '-')}"
                yield f"{option} was {_shown(before)}, is {_shown(now)}"


def _unique(kept: Sequence[SampledAnswer]) -> list[AnswerSource]:
    sources = list[AnswerSource]()
    for row in kept:
        if row.source not in sources:
            sources.append(row.source)
    return sources


def _shown(value: object) -> str:
    if value is None or value == {}:
        return "not given"
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)


def _other_rows(
    config: SampleConfig, kept: Sequence[SampledAnswer], groups: dict[str, str | None]
) -> Iterator[str]:
    yield from (f"--seed was {s}, is {config.seed}" for s in {r.seed for r in kept} - {config.seed})
    if (most := max((row.number + 1 for row in kept), default=0)) > config.answers:
        yield f"-n was {most}, is {config.answers}"
    ids = {row.prompt_id: row.group for row in kept}
    if gone := ids.keys() - groups.keys():
        yield f"it has answers to {len(gone):,} prompts that --prompts does not have"
    if any(ids[key] != groups[key] for key in ids.keys() & groups.keys()):
        yield f"--group-by was another column, is {_shown(config.group_by)}"
