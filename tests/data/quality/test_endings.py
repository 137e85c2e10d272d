import pytest

from orpo_mlx.data.quality.answers import has_open_fence, is_cut_short


@pytest.mark.parametrize(
    "text",
    [
        "Open the app first. Then choose the car",
        "Open the app.\n\nThen choose",
        "1. Open the app.\n2. Choose the card.\n3. Press",
        "That can be fixed.\n1. Open the proof of delivery on the tr",
        "Do this.\n1. Open it.\n2.",
        "Erst die App öffnen. Dann die Karte aus",
        "先打开应用。然后选择",
        "This one sentence has a good many words and then it just stops with the",
        "There are three reasons. These are:",
    ],
)
def test_texts_that_stop_within_a_sentence(text: str) -> None:
    assert is_cut_short(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Paris",
        "It is Paris.",
        "He said: “Wait.”",
        "Take care. All the best,\nAnna Berg",
        "You need these. Bring them along.\n- apples\n- pears",
        "See the manual. It is at https://example.org/manual",
        "This works. Try it.\n```\nx = 1\n```",
        "Done. Have fun! 🎉",
        "## Heading\nText here.\n| a | b |\n| 1 | 2 |",
        "The quick brown fox jumps over the lazy dog and runs away at once",
        "先打开应用。然后选择卡片。",
        "Dear team, thank you. Regards,\n[Your Name]",
    ],
)
def test_texts_that_end_as_they_should(text: str) -> None:
    assert not is_cut_short(text)


@pytest.mark.parametrize(
    ("text", "is_open"),
    [
        ("```\nx\n```", False),
        ("```python\nx", True),
        ("a\n```\nx\n```\nb\n```\ny", True),
        ("````\n```\ninner\n````", False),
        ("~~~\nx\n~~~", False),
        ("~~~\n```\nx\n~~~", False),
        ("Use ```x``` here.", False),
        ("```x```\nmore", False),
        ("  ```js\nx\n  ```", False),
    ],
)
def test_a_block_of_code_is_open_until_its_own_fence(text: str, is_open: bool) -> None:
    assert has_open_fence(text) is is_open
