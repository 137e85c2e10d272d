from random import Random

from orpo_mlx.data.quality.diversity import find_sameness, measure_diversity
from orpo_mlx.data.quality.findings import Finding
from orpo_mlx.data.quality.languages import NAMES, NO_LANGUAGE
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
    what = notes_on(data)["languages"].what
    assert what.startswith("the chosen answers are in several languages: ")
    assert {part.rpartition(" ")[0] for part in what.partition(": ")[2].split(", ")} == {
        "English",
        "German",
        "Chinese",
    }
    english = [row for row, r in zip(data, made, strict=True) if r.kind == "english"]
    assert "languages" not in notes_on(english)


# What the detector takes for Wu by less than it is sure, for a language that it is not, for none.
DOUBTFUL = [
    "小时要今朝钟头银行。钱浴室关掉。门总闸工人到，一个一个钱漏水上海",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "def f(x): return x + 1 # 12345 print(f(3))",
    "https://a.b/c?d=e&f=g 192.168.0.1",
    "12345 67890 0x1f 3.14159 2.71828 1e-5",
]


def test_a_language_that_the_detector_is_not_sure_of_is_not_reported() -> None:
    made = [r.chosen for r in clean_rows(Random(2), 90) if r.kind == "chinese"]
    answers = [*made, *DOUBTFUL * 4]
    assert len(made) > 20
    data = rows(*(pair(text(5), answer) for answer in answers))
    assert dict(measure_diversity(data, DEFAULTS).languages).keys() == {"zh"}
    assert "languages" not in notes_on(data)


def test_every_language_of_the_detector_has_a_name() -> None:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    labels = LanguageIdentifier.from_model_file(MODEL_FILE).labels
    assert set(labels) - {NO_LANGUAGE} == NAMES.keys()
    assert len(set(NAMES.values())) == len(NAMES)


def test_varied_pairs_and_few_pairs_give_no_note() -> None:
    assert notes_on(rows(*(pair(text(9), "Well " + text(9)) for _ in range(60))), language=1) == {}
    assert notes_on(rows(pair(), pair())) == {}
