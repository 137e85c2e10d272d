"""How varied the pairs are: distinct prompts, openings, vocabulary, clusters, languages."""

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from orpo_mlx.data.quality.findings import MAX_EXAMPLES, NOTE, Finding, Hit, example_of
from orpo_mlx.data.quality.languages import detect_language, language_name
from orpo_mlx.data.quality.minhash import Groups, near_matches
from orpo_mlx.data.quality.texts import Texts, normalize, shingles, units
from orpo_mlx.data.quality.thresholds import Thresholds, describe_threshold

LEAST_ROWS = 20  # too few to judge variety
OPENING_WORDS = 3
SAMPLED_PROMPTS = 2_000
SAMPLED_TEXTS = 1_000
SAMPLED_WORDS = 10_000
LEAST_CHARACTERS = 20  # of a text whose language can be detected
LANGUAGE_CHARACTERS = 300  # read of each text


class Diversity(NamedTuple):
    """The figures of variety."""

    distinct_prompts: int
    openings: tuple[tuple[str, int], ...]  # of the chosen, most frequent first
    vocabulary: float  # distinct words as a share of a sample of words
    cluster: tuple[int, int]  # prompts of the largest cluster, of those sampled
    cluster_rows: tuple[Texts, ...]  # some of its rows
    languages: tuple[tuple[str, int], ...]  # by code, of sampled texts, most frequent first


def measure_diversity(rows: Sequence[Texts], thresholds: Thresholds, seed: int = 0) -> Diversity:
    """The figures of variety over all rows, some of them from samples drawn with `seed`."""
    largest, sampled = _largest_cluster(rows, thresholds["similar_prompts"], seed)
    return Diversity(
        len({row.prompt_key for row in rows}),
        tuple(Counter(filter(None, map(_opening, rows))).most_common(5)),
        _vocabulary(rows, seed),
        (len(largest), sampled),
        tuple(largest[:MAX_EXAMPLES]),
        tuple(_languages(rows, seed).most_common(10)),
    )


def _opening(row: Texts) -> str:
    words = units(normalize(row.chosen[:100]))
    return " ".join(words[:OPENING_WORDS]) if len(words) > OPENING_WORDS else ""


def _sample(rows: Sequence[Texts], count: int, seed: int) -> Sequence[Texts]:
    return rows if len(rows) <= count else Random(seed).sample(rows, count)


def _vocabulary(rows: Sequence[Texts], seed: int) -> float:
    words: list[str] = []
    for row in _sample(rows, len(rows) - 1, seed) if len(rows) > 1 else rows:
        words += units(row.chosen_key)
        if len(words) >= SAMPLED_WORDS:
            break
    return len(set(words[:SAMPLED_WORDS])) / max(len(words[:SAMPLED_WORDS]), 1)


def _largest_cluster(rows: Sequence[Texts], threshold: float, seed: int) -> tuple[list[Texts], int]:
    """The largest group of distinct prompts alike, and how many prompts were looked at."""
    prompts = _sample(list({row.prompt_key: row for row in rows}.values()), SAMPLED_PROMPTS, seed)
    keys = [normalize(row.question) for row in prompts]
    groups = Groups(len(prompts))
    for match in near_matches(len(prompts), lambda n: shingles(keys[n]), threshold):
        groups.join(match.later, match.earlier)
    members: dict[int, list[Texts]] = {}
    for number, row in enumerate(prompts):
        members.setdefault(groups.find(number), []).append(row)
    return max(members.values(), key=len, default=[]), len(prompts)


def _languages(rows: Sequence[Texts], seed: int) -> Counter[str]:
    texts = (" ".join(row.chosen.split()) for row in _sample(rows, SAMPLED_TEXTS, seed))
    detected = (
        detect_language(text[:LANGUAGE_CHARACTERS])
        for text in texts
        if len(text) >= LEAST_CHARACTERS
    )
    return Counter(language for language in detected if language)


def find_sameness(
    rows: Sequence[Texts], figures: Diversity, thresholds: Thresholds
) -> list[Finding]:
    """Notes where there is little variety, or more languages than one."""
    if len(rows) < LEAST_ROWS:
        return []
    return [
        *_few_prompts(rows, figures, thresholds),
        *_openings(rows, figures, thresholds),
        *_small_vocabulary(rows, figures, thresholds),
        *_cluster(rows, figures, thresholds),
        *_several_languages(rows, figures, thresholds),
    ]


def _note(
    name: str, total: int, what: str, advice: str, threshold: str, rows: Sequence[Texts] = ()
) -> list[Finding]:
    examples = tuple(example_of(Hit(row)) for row in rows[:MAX_EXAMPLES])
    return [Finding(name, NOTE, (), total, what, advice, threshold, examples)]


def _few_prompts(rows: Sequence[Texts], figures: Diversity, limits: Thresholds) -> list[Finding]:
    share = figures.distinct_prompts / len(rows)
    if share >= limits["few_prompts"]:
        return []
    return _note(
        "few_prompts",
        len(rows),
        f"{figures.distinct_prompts:,} distinct prompts in {len(rows):,} pairs ({share:.0%})",
        "More prompts teach more than more pairs of the same ones; split by prompt.",
        describe_threshold("few_prompts", limits),
    )


def _openings(rows: Sequence[Texts], figures: Diversity, limits: Thresholds) -> list[Finding]:
    often = [(o, n) for o, n in figures.openings if n >= limits["opening"] * len(rows)]
    if not often:
        return []
    listed = "; ".join(f'"{opening}" {n / len(rows):.0%}' for opening, n in often)
    return _note(
        "openings",
        len(rows),
        f"many chosen answers begin with the same words: {listed}",
        "The model will begin like that everywhere: vary or cut these openings.",
        describe_threshold("opening", limits),
        [row for row in rows if _opening(row) == often[0][0]],
    )


def _small_vocabulary(
    rows: Sequence[Texts], figures: Diversity, limits: Thresholds
) -> list[Finding]:
    if figures.vocabulary >= limits["vocabulary"]:
        return []
    return _note(
        "vocabulary",
        len(rows),
        f"few different words: {figures.vocabulary:.1%} of the words sampled are distinct",
        "Check whether the answers were filled from a template.",
        describe_threshold("vocabulary", limits),
    )


def _cluster(rows: Sequence[Texts], figures: Diversity, limits: Thresholds) -> list[Finding]:
    size, sampled = figures.cluster
    if size < 2 or size < limits["cluster"] * sampled:
        return []
    drawn = "" if sampled == figures.distinct_prompts else f" (of {sampled:,} drawn at random)"
    return _note(
        "cluster",
        sampled,
        f"{size:,} prompts, {size / sampled:.0%}{drawn}, are in one cluster",
        "Much of the data is about one thing, or from one template: is that intended?",
        describe_threshold("cluster", limits),
        figures.cluster_rows,
    )


def _several_languages(
    rows: Sequence[Texts], figures: Diversity, limits: Thresholds
) -> list[Finding]:
    total = sum(n for _, n in figures.languages)
    often = [(code, n) for code, n in figures.languages if n >= limits["language"] * total]
    if len(often) < 2:
        return []
    listed = ", ".join(f"{language_name(code)} {n / total:.0%}" for code, n in often)
    return _note(
        "languages",
        total,
        f"the chosen answers are in several languages: {listed}",
        "Check whether all of them are intended; a rare one is learned little.",
        describe_threshold("language", limits),
    )
