"""Texts that hold a complete conversation: Human/Assistant turns, and templates' own markers."""

import re

from orpo_mlx.data.pairs.messages import Message

# hh-rlhf and Nectar write the first, HelpSteer2 the second (it begins with the user's text).
_HUMAN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant): ?")
_STEERED = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
_ROLES = {"Human": "user", "User": "user", "Assistant": "assistant"}
# Chat markers that no person types, and what begins an answer in each of those templates.
OPENINGS = {
    "<|im_start|>": "<|im_start|>assistant\n",
    "<|start_header_id|>": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "[INST]": "[/INST]",
    "<start_of_turn>": "<start_of_turn>model\n",
    "<|turn>": "<|turn>model\n",
    "<|start|>": "<|start|>assistant",
    "<|start_of_role|>": "<|start_of_role|>assistant<|end_of_role|>",
    "<|START_OF_TURN_TOKEN|>": "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    "<｜User｜>": "<｜Assistant｜>",
    "<|user|>": "<|assistant|>",
    "<|system|>": "<|assistant|>",
    "<|User|>": "<|Assistant|>",
}


_STARTS = (
    *OPENINGS,
    "<s>",
    "<bos>",
    "<|begin_of_text|>",
    "<|startoftext|>",
    "<|endoftext|>",
    "<|begin_of_sentence|>",
    "<｜begin▁of▁sentence｜>",
    "<BOS_TOKEN>",
    "[gMASK]",
)


def has_turns(text: str) -> bool:
    """Whether a text is a conversation in Human/Assistant turns."""
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def has_steered_turns(text: str) -> bool:
    """Whether a text is a conversation in HelpSteer2's turns."""
    return "<extra_id_1>" in text and _STEERED.search(text) is not None


def turns_of(text: str) -> list[Message]:
    """The messages of a text with turns; an opening for an answer at its end is not a message."""
    if has_steered_turns(text):
        parts = ["User", *_STEERED.split(text)]
        parts = parts if parts[1].strip() else parts[2:]
    else:
        parts = _HUMAN.split(text)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    messages: list[Message] = [
        {"role": _ROLES[who], "content": content.strip()} for who, content in pairs
    ]
    if messages[-1] == {"role": "assistant", "content": ""}:
        messages.pop()
    return messages


def is_rendered(text: str) -> bool:
    """Whether a text begins as a template's does: markers inside may be what it is about."""
    return text.lstrip().startswith(_STARTS) and bool(marker_of(text))


def marker_of(text: str) -> str:
    """The first template's marker that a text holds, or nothing."""
    return next((marker for marker in OPENINGS if marker in text), "")


def rendered_prompt(chosen: str, rejected: str) -> str:
    """What two rendered conversations share, up to where their last answer opens."""
    marker = marker_of(chosen)
    if not marker:
        return ""
    opening = OPENINGS[marker]
    length = next(
        (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
        min(len(chosen), len(rejected)),
    )
    start = chosen.rfind(opening, 0, length)
    if start < 0:
        return ""
    end = start + len(opening)
    while end < length and chosen[end] == "\n":
        end += 1
    return chosen[:end]
