from random import Random

from orpo_mlx.data.quality.diversity import find_sameness, measure_diversity
from orpo_mlx.data.quality.findings import Finding
from orpo_mlx.data.quality.texts import Texts
from orpo_mlx.data.quality.thresholds import build_thresholds
from tests.data.quality.clean import clean_rows
from tests.data.quality.rows import pair, rows

DEFAULTS = build_thresholds()
RNG = Random(0)


def text(words: int) -> str:
    return " ".join(f"w{RNG.randrange(10**6)}" for _ in range(words))


def notes_on(data: list[Texts], **given: float) -> dict[str, Finding]:
    limits = build_thresholds(given)
    return {f.name: f for f in find_sameness(data, measure_diversity(data, limits), limits)}


def test_few_prompts_and_frequent_openings_are_reported_with_their_share() -> None:
    data = rows(
        *(
            pair(f"prompt {text(2) if i > 30 else ''}", f"Certainly! Here is {text(5)}")
            for i in range(40)
        )
    )
    notes = notes_on(data)
    assert notes["few_prompts"].what == "10 distinct prompts in 40 pairs (25%)"
    assert '"certainly here is" 100%' in notes["openings"].what
    assert "few_prompts" not in notes_on(data, few_prompts=0.2)


def test_a_cluster_of_prompts_is_reported() -> None:
    template = text(20)
    data = rows(
        *(pair(f"{template} {text(2)}" if i < 20 else text(20), text(8)) for i in range(100))
    )
    assert notes_on(data)["cluster"].what.startswith("20 prompts, 20%, are in one cluster")
    assert "cluster" not in notes_on(data, cluster=0.3)


def test_a_small_vocabulary_is_reported() -> None:
    data = rows(
        *(pair(text(5), " ".join(RNG.choices(["yes", "no", "oh"], k=40))) for _ in range(50))
    )
    assert "vocabulary" in notes_on(data)


def test_languages_are_detected_in_the_chosen_answers() -> None:
    made = [r for r in clean_rows(Random(2), 40) if r.kind in ("english", "german", "chinese")]
    data = rows(*(pair(r.prompt, r.chosen, r.rejected) for r in made))
    languages = dict(measure_diversity(data, DEFAULTS).languages)
    assert set(languages) == {"en", "de", "zh"}
    assert "languages" in notes_on(data)
    english = [row for row, r in zip(data, made, strict=True) if r.kind == "english"]
    assert "languages" not in notes_on(english)


def test_varied_pairs_and_few_pairs_give_no_note() -> None:
    assert notes_on(rows(*(pair(text(9), "Well " + text(9)) for _ in range(60))), language=1) == {}
    assert notes_on(rows(pair(), pair())) == {}
