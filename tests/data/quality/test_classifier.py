from random import Random

from orpo_mlx.data.quality.classifier import classify, find_words
from orpo_mlx.data.quality.texts import Texts
from orpo_mlx.data.quality.thresholds import build_thresholds
from tests.data.quality.rows import pair, rows

DEFAULTS = build_thresholds()
WORDS = [f"word{i}" for i in range(200)]


def data(count: int, polite: float, prompts: int = 10**6) -> list[Texts]:
    """Pairs of random words; a share of the chosen holds the word "please"."""
    rng = Random(0)
    made = []
    for i in range(count):
        chosen, rejected = (" ".join(rng.sample(WORDS, 12)) for _ in range(2))
        chosen += " please" if rng.random() < polite else ""
        made.append(pair(f"prompt {i % prompts}", chosen, rejected))
    return rows(*made)


def test_a_word_that_gives_the_chosen_away_is_found_and_named() -> None:
    result = classify(data(400, polite=0.9), DEFAULTS)
    assert result is not None
    assert 0.88 <= result.accuracy <= 1
    assert result.chosen_words[0] == "please"
    (finding,) = find_words(result, DEFAULTS)
    assert (finding.name, finding.severity) == ("words", "warning")
    assert "please" in finding.what


def test_random_words_tell_nothing() -> None:
    result = classify(data(400, polite=0), DEFAULTS)
    assert result is not None
    assert abs(result.accuracy - 0.5) < 4 * result.error
    assert find_words(result, DEFAULTS) == []


def test_what_is_true_of_one_prompt_alone_does_not_count() -> None:
    rng = Random(1)
    made = []
    for i in range(300):
        own = [f"topic{i % 30}a", f"topic{i % 30}b"]
        texts = (" ".join([*rng.sample(WORDS, 8), word]) for word in own)
        made.append(pair(f"prompt {i % 30}", *texts))
    result = classify(rows(*made), DEFAULTS)
    assert result is not None
    assert result.accuracy < 0.65


def test_of_more_pairs_than_the_limit_some_are_drawn_and_reported() -> None:
    few = build_thresholds({"classifier_pairs": 100})
    result = classify(data(150, polite=1), few)
    assert result is not None
    assert (result.pairs, result.of) == (100, 150)
    assert "on 100 of 150 pairs" in find_words(result, few)[0].what


def test_few_pairs_or_prompts_are_not_judged() -> None:
    assert classify(data(40, polite=1), DEFAULTS) is None
    assert classify(data(100, polite=1, prompts=4), DEFAULTS) is None


def test_the_same_seed_gives_the_same_result() -> None:
    pairs = data(120, polite=0.5)
    assert classify(pairs, DEFAULTS, 3) == classify(pairs, DEFAULTS, 3)
