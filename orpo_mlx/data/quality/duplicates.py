"""Rows that occur twice, in one split or in two (leakage), and pairs that contradict each other."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from random import Random

from orpo_mlx.data.quality.findings import NOTE, SEVERE, Finding, Hit, rows_finding
from orpo_mlx.data.quality.minhash import Match, near_matches
from orpo_mlx.data.quality.texts import Texts, normalize, shingles
from orpo_mlx.data.quality.thresholds import Thresholds, describe_threshold

SAMPLED_PROMPTS = 2_000
LEAST_PROMPTS = 10  # that share a run of words before it is a template
LEAST_SHINGLES = 4  # a row of fewer is only compared exactly
LEAST_OF_PROMPT = 20  # likewise: in a short prompt one other word makes another question


def find_duplicates(
    rows: Sequence[Texts],
    thresholds: Thresholds,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Finding]:
    """Duplicates and near-duplicates within splits, and what leaks from one into another."""
    whole = _group_equal([(r.split, r.prompt_key, r.chosen_key, r.rejected_key) for r in rows])
    first = [members[0] for members in whole]
    template = boilerplate([row.question for row in rows], thresholds["boilerplate"])
    threshold = thresholds["near_duplicate"]
    near = near_matches(
        len(first), lambda n: _row_shingles(rows[first[n]], template), threshold, progress
    )
    matches = [Match(first[m.later], first[m.earlier], m.similarity) for m in near]
    return [
        *_leaks(rows, matches, thresholds, template),
        *_exact(rows, whole),
        *_near(
            rows, [m for m in matches if rows[m.later].split == rows[m.earlier].split], thresholds
        ),
    ]


def boilerplate(questions: Sequence[str], share: float) -> frozenset[str]:
    """Runs of words that so many prompts share that they are not specific to one of them."""
    questions = list(dict.fromkeys(questions))
    if len(questions) > SAMPLED_PROMPTS:
        questions = Random(0).sample(questions, SAMPLED_PROMPTS)
    counts = Counter(s for q in questions for s in set(shingles(normalize(q))))
    least = max(share * len(questions), LEAST_PROMPTS)
    return frozenset(shingle for shingle, count in counts.items() if count > least)


def _row_shingles(row: Texts, template: Collection[str]) -> list[str]:
    """The runs of words of a complete row, each with the side that it is from."""
    prompt = [s for s in shingles(row.prompt_key) if s not in template]
    runs = [
        *prompt,
        *("+" + s for s in shingles(row.chosen_key)),
        *("-" + s for s in shingles(row.rejected_key)),
    ]
    return runs if len(runs) >= LEAST_SHINGLES else []


def _group_equal(keys: Sequence[tuple[str, ...]]) -> list[list[int]]:
    """The numbers of equal keys, group by group in order of the first."""
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, key in enumerate(keys):
        groups[key].append(number)
    return list(groups.values())


def _exact(rows: Sequence[Texts], groups: Sequence[Sequence[int]]) -> list[Finding]:
    twice = [members for members in groups if len(members) > 1]
    hits = [
        Hit(rows[n], f"the same as {rows[members[1] if n == members[0] else members[0]].location}")
        for members in twice
        for n in members
    ]
    return rows_finding(
        "duplicate",
        NOTE,
        hits,
        len(rows),
        what="the row occurs more than once",
        advice="Keep one of each, unless a row is meant to count more.",
        figures={"groups": len(twice), "surplus": sum(len(m) - 1 for m in twice)},
    )


def _near(rows: Sequence[Texts], matches: Sequence[Match], thresholds: Thresholds) -> list[Finding]:
    hits: dict[str, Hit] = {}
    for match in matches:
        later, earlier = rows[match.later], rows[match.earlier]
        alike = f"{match.similarity:.0%} like"
        hits.setdefault(later.location, Hit(later, f"{alike} {earlier.location}"))
        hits.setdefault(earlier.location, Hit(earlier, f"{alike} {later.location}"))
    return rows_finding(
        "near_duplicate",
        NOTE,
        list(hits.values()),
        len(rows),
        what="the row is nearly the same as another one",
        advice="Keep one of each: the others are seen as often again without anything new.",
        threshold=describe_threshold("near_duplicate", thresholds),
        figures={"matches": len(matches)},
    )


def _leaks(
    rows: Sequence[Texts],
    matches: Sequence[Match],
    thresholds: Thresholds,
    template: Collection[str],
) -> list[Finding]:
    """Rows whose prompt, or nearly all of them, is in another split too."""
    if len({row.split for row in rows}) < 2:
        return []
    prompts = _group_equal([(row.prompt_key,) for row in rows])
    partners: dict[int, tuple[int, str]] = {}
    for members in prompts:
        for n in members:
            other = next((m for m in members if rows[m].split != rows[n].split), None)
            if other is not None:
                partners[n] = (other, "the same prompt as")
    across = [m for m in matches if rows[m.later].split != rows[m.earlier].split]
    for match in [*across, *_near_prompts(rows, prompts, thresholds, template)]:
        for n, other in ((match.later, match.earlier), (match.earlier, match.later)):
            partners.setdefault(n, (other, f"{match.similarity:.0%} like"))
    hits = [Hit(rows[n], f"{how} {rows[o].location}") for n, (o, how) in sorted(partners.items())]
    return rows_finding(
        "leak",
        SEVERE,
        hits,
        len(rows),
        what="a prompt, or nearly the entire row, is in another split too",
        advice="Remove these rows from the training data, or split again by prompt: "
        "orpo-mlx data split.",
        threshold=describe_threshold("near_duplicate", thresholds),
    )


def _near_prompts(
    rows: Sequence[Texts],
    prompts: Sequence[Sequence[int]],
    thresholds: Thresholds,
    template: Collection[str],
) -> list[Match]:
    """Matches between rows of two splits whose prompts are nearly the same."""

    def own(number: int) -> list[str]:
        runs = [s for s in shingles(rows[prompts[number][0]].prompt_key) if s not in template]
        return runs if len(runs) >= LEAST_OF_PROMPT else []

    matches = []
    for match in near_matches(len(prompts), own, thresholds["near_duplicate"]):
        later, earlier = prompts[match.later], prompts[match.earlier]
        for own_rows, others in ((later, earlier), (earlier, later)):
            for n in own_rows:
                other = next((o for o in others if rows[o].split != rows[n].split), None)
                if other is not None:
                    matches.append(Match(n, other, match.similarity))
    return matches


def find_contradictions(rows: Sequence[Texts]) -> list[Finding]:
    """Pairs that are swapped elsewhere, and texts that are chosen here and rejected there."""
    by_pair: dict[tuple[str, str, str], list[Texts]] = defaultdict(list)
    rejecting: dict[tuple[str, str], list[Texts]] = defaultdict(list)
    for row in rows:
        if row.chosen_key != row.rejected_key:
            by_pair[row.prompt_key, row.chosen_key, row.rejected_key].append(row)
            rejecting[row.prompt_key, row.rejected_key].append(row)
    swapped = [
        Hit(row, f"swapped in {others[0].location}")
        for row in rows
        if (others := by_pair.get((row.prompt_key, row.rejected_key, row.chosen_key)))
        and row.chosen_key != row.rejected_key
    ]
    contrary = {hit.row.location for hit in swapped}
    both_ways: dict[str, Hit] = {}
    for row in rows:
        if row.location in contrary or row.chosen_key == row.rejected_key:
            continue
        for other in rejecting.get((row.prompt_key, row.chosen_key), ()):
            if other.location not in contrary:
                both_ways.setdefault(
                    row.location, Hit(row, f"chosen is rejected in {other.location}")
                )
                both_ways.setdefault(
                    other.location, Hit(other, f"rejected is chosen in {row.location}")
                )
    return [
        *rows_finding(
            "swapped",
            SEVERE,
            swapped,
            len(rows),
            what="the same pair is elsewhere with chosen and rejected swapped",
            advice="Decide which answer is better, and remove the other row.",
        ),
        *rows_finding(
            "both_ways",
            SEVERE,
            list(both_ways.values()),
            len(rows),
            what="a text is chosen here and rejected there for the same prompt",
            advice="Remove one of the rows. Of answers that are ranked, the middle ones are both: "
            "keep the best against the worst, without --min-margin.",
        ),
    ]
