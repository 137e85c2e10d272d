"""How well a bag of words tells chosen from rejected on prompts that it has not seen."""

import math
from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

import numpy as np

from orpo_mlx.data.quality.findings import WARNING, Finding
from orpo_mlx.data.quality.shallow_cues import is_certain
from orpo_mlx.data.quality.texts import Texts, units
from orpo_mlx.data.quality.thresholds import Thresholds, describe_threshold
from orpo_mlx.extras import import_extra

FOLDS = 5
LEAST_PAIRS = 50
MAX_WORDS = 20_000
TOP = 12


class ClassifierResult(NamedTuple):
    """What the classifier reached, and the words that it went by."""

    accuracy: float  # over all pairs, each judged by a fold that has not seen its prompt
    error: float  # standard error of it
    pairs: int
    of: int
    chosen_words: tuple[str, ...]
    rejected_words: tuple[str, ...]


def classify(
    rows: Sequence[Texts], thresholds: Thresholds, seed: int = 0
) -> ClassifierResult | None:
    """Cross-validated by prompt; None if there are too few pairs or prompts."""
    chosen = [row for row in rows if row.chosen_key != row.rejected_key]
    limit = int(thresholds["classifier_pairs"])
    sample = chosen if len(chosen) <= limit else Random(seed).sample(chosen, limit)
    folds = _folds(sample, seed)
    if len(sample) < LEAST_PAIRS or len(set(folds.tolist())) < FOLDS:
        return None
    differences, words = _differences(sample)
    right = np.zeros(len(sample))
    for fold in range(FOLDS):
        held = folds == fold
        scores = differences[held] @ _weights(differences[~held], seed)
        right[held] = (scores > 0) + 0.5 * (scores == 0)
    accuracy = float(right.mean())
    order = np.argsort(_weights(differences, seed))
    return ClassifierResult(
        accuracy,
        math.sqrt(accuracy * (1 - accuracy) / len(sample)),
        len(sample),
        len(rows),
        tuple(words[i] for i in order[::-1][:TOP]),
        tuple(words[i] for i in order[:TOP]),
    )


def _folds(rows: Sequence[Texts], seed: int) -> np.ndarray:
    """The fold of every row, (N,): all rows of a prompt in one."""
    prompts = sorted({row.prompt_key for row in rows})
    Random(seed).shuffle(prompts)
    fold = {prompt: number % FOLDS for number, prompt in enumerate(prompts)}
    return np.array([fold[row.prompt_key] for row in rows])


def _differences(rows: Sequence[Texts]) -> tuple[Any, np.ndarray]:
    """Which words are in chosen (1) or rejected (-1) alone: sparse (N, words), and the words."""
    text = import_extra("sklearn.feature_extraction.text", "check")
    count = text.CountVectorizer(
        analyzer=units,
        binary=True,
        dtype=np.float32,
        max_features=MAX_WORDS,
        min_df=2 if len(rows) < 1000 else 5,
    )
    counts = count.fit_transform([k for r in rows for k in (r.chosen_key, r.rejected_key)])
    return counts[::2] - counts[1::2], count.get_feature_names_out()


def _weights(differences: Any, seed: int) -> np.ndarray:
    """A logistic regression that prefers the first of two answers, (words,).

    Each pair is shown once, one half of them the other way round: no side has an advantage.
    """
    linear = import_extra("sklearn.linear_model", "check")
    drawn = np.random.default_rng(seed).random(differences.shape[0])
    signs = np.where(drawn < 0.5, 1, -1).astype(np.float32)
    model = linear.LogisticRegression(fit_intercept=False, max_iter=1000, tol=1e-3)
    model.fit(differences.multiply(signs[:, None]).tocsr(), signs)
    return np.asarray(model.coef_[0])


def find_words(result: ClassifierResult | None, thresholds: Thresholds) -> list[Finding]:
    """A finding if words alone tell the pairs apart."""
    if result is None or result.accuracy < thresholds["classifier"]:
        return []
    if not is_certain(result.accuracy, result.pairs):
        return []
    drawn = f", on {result.pairs:,} of {result.of:,} pairs" if result.pairs < result.of else ""
    return [
        Finding(
            name="words",
            severity=WARNING,
            rows=(),
            total=result.pairs,
            what=f"a bag-of-words classifier finds the chosen answer in {result.accuracy:.1%} "
            f"(± {2 * result.error:.1%}) of the pairs of prompts it has not seen{drawn}; chosen: "
            f"{', '.join(result.chosen_words)}; rejected: {', '.join(result.rejected_words)}",
            advice="The model may learn these words instead of quality: read some pairs to see "
            "what gives them away, and measure a trained model on other data, too.",
            threshold=describe_threshold("classifier", thresholds),
            figures={"accuracy": result.accuracy, "error": result.error, "pairs": result.pairs},
        )
    ]
