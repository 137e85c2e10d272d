import math

import pytest

from orpo_mlx.data.quality.shallow_cues import COUNTS, find_cues, is_certain, measure_cues
from orpo_mlx.data.quality.thresholds import build_thresholds
from tests.data.quality.rows import pair, rows

DEFAULTS = build_thresholds()


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("length in characters", "abc", 3),
        ("list items", "1. a\n2) b\n- c\n* d\n-e\n3.5 f", 4),
        ("headings", "# a\n## b\n#c", 2),
        ("bold type", "**a** and **b**", 2),
        ("emoji", "👍 ok ☀ ✓", 3),
        ("exclamation marks", "a! b！", 2),
        ("question marks", "a? b？", 2),
        ("first-person apologies", "I'm sorry. We apologise.", 2),
        ("code", "`a` and ```b```", 4),
        ("refusals", "I can't help with that.", 1),
    ],
)
def test_what_a_cue_counts(name: str, text: str, count: int) -> None:
    assert COUNTS[name](text) == count


def test_accuracy_counts_ties_half_and_the_effect_is_in_standard_deviations() -> None:
    data = rows(
        *(
            pair(chosen=c, rejected=r)
            for c, r in [("a!", "a"), ("a!!!", "a"), ("a", "a!"), ("a", "b")]
        )
    )
    cue = next(cue for cue in measure_cues(data) if cue.name == "exclamation marks")
    differences = [1, 3, -1, 0]
    mean = sum(differences) / 4
    spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / 4)
    assert (cue.accuracy, cue.differing) == (2.5 / 4, 3)
    assert (cue.chosen, cue.rejected) == (1.0, 0.25)
    assert cue.effect == pytest.approx(mean / spread)


def test_the_longer_or_the_shorter_answer_being_chosen_is_a_warning() -> None:
    longer = rows(*(pair(chosen="word " * 9, rejected="word") for _ in range(40)))
    (finding,) = find_cues(longer, measure_cues(longer), DEFAULTS)
    assert (finding.name, finding.severity) == ("length", "warning")
    assert finding.what.startswith("the longer answer means chosen in 100% of the pairs")
    shorter = rows(*(pair(chosen="word", rejected="word " * 9) for _ in range(40)))
    (finding,) = find_cues(shorter, measure_cues(shorter), DEFAULTS)
    assert finding.what.startswith("the shorter answer means chosen in 100% of the pairs")


def test_a_balanced_cue_and_one_in_few_pairs_are_not_findings() -> None:
    mixed = rows(
        *(
            pair(chosen="a!" if i % 2 else "ab", rejected="ab" if i % 2 else "a!")
            for i in range(100)
        )
    )
    assert find_cues(mixed, measure_cues(mixed), DEFAULTS) == []
    few = rows(*(pair(chosen="a!", rejected="ab") for _ in range(10)))
    assert find_cues(few, measure_cues(few), DEFAULTS) == []


def test_the_threshold_decides() -> None:
    data = rows(*(pair(chosen="a!" if i % 5 else "ab", rejected="ab") for i in range(100)))
    assert [f.name for f in find_cues(data, measure_cues(data), DEFAULTS)] == ["exclamation_marks"]
    lax = build_thresholds({"cue": 0.95})
    assert find_cues(data, measure_cues(data), lax) == []


def test_an_accuracy_is_certain_beyond_three_standard_errors() -> None:
    assert is_certain(0.65, 100)
    assert not is_certain(0.64, 100)
    assert not is_certain(1.0, 19)


def test_examples_follow_the_rule_that_they_show() -> None:
    ties = [pair(chosen="one two", rejected="one two")] * 5
    data = rows(*ties, *[pair(chosen="one", rejected="one two three")] * 95)
    (finding,) = find_cues(data, measure_cues(data), DEFAULTS)
    assert finding.what.startswith("the shorter answer means chosen in 98% of the pairs")
    assert [example.location for example in finding.examples] == ["a.jsonl:6", "a.jsonl:7"]
