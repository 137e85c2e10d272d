from orpo_mlx.data.quality.broken import find_unreadable
from orpo_mlx.data.quality.findings import merge_by_name
from orpo_mlx.data.reading.report import Problem

PROBLEMS = [
    Problem("a.jsonl:3", '"chosen" is empty'),
    Problem("a.jsonl:4", '"chosen" and "rejected" are the same'),
    Problem("a.jsonl:5", "not JSON: Expecting value at column 1"),
    Problem("a.jsonl:5", "something else"),
]


def test_bad_rows_are_severe_and_named_by_what_is_wrong() -> None:
    findings = find_unreadable(PROBLEMS, 10)
    assert {f.name: f.rows for f in findings} == {
        "empty": ("a.jsonl:3",),
        "equal": ("a.jsonl:4",),
        "unreadable": ("a.jsonl:5",),
    }
    assert {(f.severity, f.total) for f in findings} == {("severe", 13)}
    assert findings[2].examples[0].detail == "not JSON: Expecting value at column 1"
    assert "1 x something else" in findings[2].what


def test_findings_of_one_name_become_one() -> None:
    other = [Problem("b:1", '"chosen[0]" is an empty answer')]
    twice = find_unreadable(PROBLEMS[:1], 10) + find_unreadable(other, 20)
    (one,) = merge_by_name(twice)
    assert (one.rows, one.total, len(one.examples)) == (("a.jsonl:3", "b:1"), 21, 2)
