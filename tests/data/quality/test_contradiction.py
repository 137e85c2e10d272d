from orpo_mlx.data.quality.duplicates import find_contradictions
from tests.data.quality.rows import named, pair, rows

SYSTEM = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tea?"}]


def test_a_pair_and_its_swap_are_both_named() -> None:
    data = rows(pair("Tea?", "Yes", "No"), pair("Milk?", "Yes", "No"), pair("tea", "no.", "yes."))
    findings = find_contradictions(data)
    assert [(f.name, f.rows) for f in findings] == [("swapped", ("a.jsonl:1", "a.jsonl:3"))]
    assert findings[0].examples[0].detail == "swapped in a.jsonl:3"


def test_a_text_that_is_chosen_here_and_rejected_there_names_both_rows() -> None:
    data = rows(pair("Tea?", "Yes", "No"), pair("Tea?", "Perhaps", "Yes"), pair("Tea?", "Oh", "No"))
    findings = find_contradictions(data)
    assert [f.name for f in findings] == ["both_ways"]
    assert named(findings, "both_ways") == ["a.jsonl:1", "a.jsonl:2"]


def test_the_same_answers_to_another_prompt_contradict_nothing() -> None:
    assert not find_contradictions(rows(pair("Tea?", "Yes", "No"), pair("Milk?", "No", "Yes")))


def test_another_system_message_makes_another_prompt() -> None:
    assert not find_contradictions(rows(pair("Tea?", "Yes", "No"), pair(SYSTEM, "No", "Yes")))


def test_equal_answers_are_not_a_contradiction() -> None:
    assert not find_contradictions(rows(pair("Tea?", "Yes", "Yes."), pair("Tea?", "Yes", "yes")))
