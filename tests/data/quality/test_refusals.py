import pytest

from orpo_mlx.data.quality.answers import count_apologies, refuses


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that.",
        "I cannot help you to build this.",
        "I won't be able to provide that.",
        "As an AI language model, I do not have opinions.",
        "Ich kann Ihnen dabei leider nicht helfen.",
        "Das kann ich leider nicht beantworten.",
        "Je ne peux pas vous aider.",
        "Lo siento, no puedo ayudar.",
        "抱歉，我无法提供帮助。",
    ],
)
def test_refusals_are_seen(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry that happened. Here is how to fix it.",
        "You cannot create a file there without rights.",
        "I can help with that.",
        "Das kann nicht jeder, aber Sie schaffen es.",
        "我可以帮助你。",
        "First open the app. " * 20 + "I cannot help with that.",
    ],
)
def test_helpful_answers_are_not_refusals(text: str) -> None:
    assert not refuses(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("I'm so sorry. We apologise for the delay.", 2),
        ("Es tut uns sehr leid!", 1),
        ("对不起。", 1),
        ("A sorry sight; she apologised.", 0),
    ],
)
def test_apologies_in_the_first_person_are_counted(text: str, count: int) -> None:
    assert count_apologies(text) == count
