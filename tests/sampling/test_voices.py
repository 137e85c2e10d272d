"""An answer of a base or its adapter, piece by piece."""

from collections.abc import Iterator
from typing import Any

import mlx.nn as nn
import pytest

from orpo_mlx.data.tokens.encoder import Encoder
from orpo_mlx.judging.answers import AnswerSource
from orpo_mlx.sampling.voices import Voice, Voices
from orpo_mlx.training.samples.answer import Answer
from tests import tiny

SOURCE = AnswerSource(
    name="base",
    model="base",
    temperature=0.8,
    max_tokens=9,
    thinking=True,
    template_date="2026-01-02",
)


@pytest.mark.parametrize(
    ("prompt", "pieces", "thoughts", "parts"),
    [
        ("hi", ["Hello", " there"], [], ("", "Hello there", "stop")),
        ("hi", ["<think>", "hm", "</think>", "Hi"], [0, 1, 2], ("hm", "Hi", "stop")),
        ("hi<think>\n", ["hm", "</think>", "Hi"], [0, 1], ("hm", "Hi", "stop")),
        ("hi<think>\n", ["hm", " so"], [0, 1], ("hm so", "", "thought")),
    ],
)
def test_thoughts_are_shown_and_kept_apart(
    monkeypatch: pytest.MonkeyPatch,
    prompt: str,
    pieces: list[str],
    thoughts: list[int],
    parts: tuple[str, str, str],
) -> None:
    def stream(*_: Any, **how: Any) -> Iterator[Answer]:
        assert how == {"max_tokens": 9, "temperature": 0.8, "seed": 5}
        for number, piece in enumerate(pieces, 1):
            yield Answer(piece, "".join(pieces[:number]), number, number == len(pieces))

    monkeypatch.setattr("orpo_mlx.sampling.voices.stream_answer", stream)
    encoder = Encoder(tiny.build_tokenizer(), frozenset({2}), True)
    voices = Voices(nn.Module(), None, {"base": Voice(encoder, SOURCE)}, [])
    shown: list[tuple[str, bool]] = []
    answer = voices.answer(
        "base", [], encoder.ids(prompt), number=2, seed=3, show=lambda *piece: shown.append(piece)
    )
    assert shown == [(piece, number in thoughts) for number, piece in enumerate(pieces)]
    assert (answer.thought, answer.text, answer.finish) == parts
