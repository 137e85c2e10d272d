"""What the rows of the public sets' fixtures say, and how what they are read as is written."""

from pathlib import Path
from typing import Any, NamedTuple

from orpo_mlx.data.pairs.load import Message, PreferencePair
from tests.data.rows import assistant, system, user

FIXTURES = Path(__file__).parents[1] / "fixtures"
LIGHT, GOOD, BAD = (
    "How do I restart the router?",
    "Hold the button until the light is green.",
    "Try it later.",
)
BILL, HERE, UNKNOWN = ("Where is my bill?", "It is under Orders, then Bills.", "I do not know.")
DESK = system("You are a help desk.")
ASKED = [user("Hello"), assistant("What is it?"), user(BILL)]
TIE = "answers that are equally good (a tie)"
TOOL = {
    "name": "find_bill",
    "description": "Find a bill.",
    "parameters": {
        "type": "object",
        "properties": {"month": {"type": "string"}},
        "required": ["month"],
    },
}


def light(
    location: str = "1", prompt: str | list[Message] = LIGHT, **labels: str
) -> PreferencePair:
    return PreferencePair(prompt, assistant(GOOD), assistant(BAD), location, labels=labels)


def bill(location: str = "2", prompt: str | list[Message] = BILL, **labels: str) -> PreferencePair:
    return PreferencePair(prompt, assistant(HERE), assistant(UNKNOWN), location, labels=labels)


def month(name: str) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "find_bill", "arguments": {"month": name}}}]


def chatml(prompt: str) -> str:
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def raw(pair: PreferencePair, end: str) -> PreferencePair:
    chosen, rejected = (assistant(m["content"] + end) for m in (pair.chosen, pair.rejected))
    return pair._replace(
        prompt=chatml(str(pair.prompt)), chosen=chosen, rejected=rejected, raw=True
    )


class Read(NamedTuple):
    """What a fixture is read as."""

    sentence: str
    pairs: list[PreferencePair]
    drops: dict[str, int] = {}  # noqa: RUF012
