"""The sides of prompts, and which of them a round has."""

import pytest

from orpo_mlx.errors import OrpoError
from orpo_mlx.loops.split import prompt_id, prompts_of_round, sides_of
from orpo_mlx.loops.state import Round, Side

HASHES = [number * 0x9E3779B97F4A7C15 % 2**64 for number in range(1, 401)]
COUNTS: dict[Side, int] = {"pairs": 10, "verdict": 20}


def test_a_side_follows_from_the_prompt_and_the_seed_alone() -> None:
    all_sides = sides_of(HASHES, {}, verdict_share=0.5, seed=1)
    few = sides_of(HASHES[:100], {}, verdict_share=0.5, seed=1)
    assert few == {prompt_id(prompt): all_sides[prompt_id(prompt)] for prompt in HASHES[:100]}
    assert sides_of(HASHES, {}, verdict_share=0.5, seed=2) != all_sides
    # 400 draws of 1/2: five standard deviations are 50
    assert abs(list(all_sides.values()).count("verdict") - 200) < 50


def test_a_side_that_was_kept_stays_whatever_is_drawn() -> None:
    kept: dict[str, Side] = {prompt_id(prompt): "verdict" for prompt in HASHES[:50]}
    sides = sides_of(HASHES, kept, verdict_share=0.1, seed=1)
    assert all(sides[prompt] == "verdict" for prompt in kept)
    assert list(sides.values()).count("pairs") > 250


def test_even_two_prompts_are_on_two_sides() -> None:
    for seed in range(20):
        sides = sides_of(HASHES[:2], {}, verdict_share=0.5, seed=seed)
        assert sorted(sides.values()) == ["pairs", "verdict"]


def test_prompts_that_no_round_had_come_first_then_those_of_fewest_rounds() -> None:
    sides = sides_of(HASHES[:60], {}, verdict_share=0.5, seed=3)
    rounds: list[Round] = []
    for number in range(1, 7):
        chosen = prompts_of_round(sides, sides, rounds, counts=COUNTS, seed=3)
        assert [len(chosen["pairs"]), len(chosen["verdict"])] == [10, 20]
        for side, prompts in chosen.items():
            assert {sides[prompt] for prompt in prompts} == {side}
        rounds.append(
            Round(
                number=number,
                pair_prompts=chosen["pairs"],
                verdict_prompts=chosen["verdict"],
                adapter=True,
            )
        )
    for side, name in (("pairs", "pair_prompts"), ("verdict", "verdict_prompts")):
        used = [prompt for one in rounds for prompt in getattr(one, name)]
        counts = [used.count(prompt) for prompt, own in sides.items() if own == side]
        assert max(counts) - min(counts) <= 1


def test_a_round_that_trained_nothing_used_up_no_prompt_of_the_verdict() -> None:
    sides = sides_of(HASHES[:60], {}, verdict_share=0.5, seed=3)
    chosen = prompts_of_round(sides, sides, [], counts=COUNTS, seed=3)
    before = Round(
        number=1, pair_prompts=chosen["pairs"], verdict_prompts=chosen["verdict"], ended="now"
    )
    again = prompts_of_round(sides, sides, [before], counts=COUNTS, seed=3)
    assert again["verdict"] == chosen["verdict"]
    assert not {*again["pairs"]} & {*chosen["pairs"]}


def test_a_round_has_the_prompts_that_there_are_and_none_of_a_side_is_an_error() -> None:
    sides: dict[str, Side] = {"a": "pairs", "b": "pairs", "c": "verdict"}
    assert sorted(prompts_of_round("abc", sides, [], counts=COUNTS, seed=0)["pairs"]) == ["a", "b"]
    with pytest.raises(OrpoError, match="--prompts: 2 prompts, and none for verdict"):
        prompts_of_round("ab", sides, [], counts=COUNTS, seed=0)
