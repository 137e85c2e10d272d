"""Thresholds: defaults, what may be set, what the documentation lists."""

from pathlib import Path

import pytest

from orpo_mlx.data.quality.thresholds import DECLARED, build_thresholds, describe_threshold
from orpo_mlx.errors import OrpoError


def test_defaults_and_what_is_given() -> None:
    given = build_thresholds({"cue": 0.7})
    assert given["cue"] == 0.7
    assert {n: v for n, v in given.items() if n != "cue"} == {
        t.name: t.default for t in DECLARED if t.name != "cue"
    }


def test_all_that_cannot_be_set_is_reported_at_once() -> None:
    with pytest.raises(OrpoError) as raised:
        build_thresholds({"clas": 1, "cue": "high", "near_duplicate": 2, "echo": 30})
    text = str(raised.value)
    assert text.startswith("Wrong thresholds:")
    assert "--threshold clas: no such threshold." in text
    assert "--threshold cue=high: must be a number." in text
    assert "--threshold near_duplicate=2: must be between 0.3 and 1" in text
    assert "echo" in text.partition("There are: ")[2]


def test_a_name_that_is_nearly_right_is_proposed() -> None:
    with pytest.raises(OrpoError, match="Did you mean classifier?"):
        build_thresholds({"clasifier": 0.9})


def test_every_threshold_is_explained() -> None:
    limits = build_thresholds()
    for threshold in DECLARED:
        assert threshold.least <= threshold.default <= threshold.most
        assert describe_threshold(threshold.name, limits).endswith(threshold.meaning)


def test_every_threshold_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    for threshold in DECLARED:
        assert f"| `{threshold.name}` | {threshold.default:g} |" in text
