"""Characters that nobody sees become signs, and the rest stays as it is."""

import pytest

from orpo_mlx.review.pairs.visible import iter_pieces


def shown(text: str) -> str:
    return "".join(piece.text for piece in iter_pieces(text))


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("one two", "one two"),
        (" a b ", "·a b·"),
        ("a  b", "a··b"),
        ("a \n b", "a·↵\n·b"),
        ("a\tb\r", "a→\tb␍"),
        ("\x1b[31mred\x07", "␛[31mred␇"),
        ("\x9b1m", "<U+009B>1m"),
        ("a\u00a0b\u200bc\u202ed", "a⍽b<ZERO WIDTH SPACE>c<RIGHT-TO-LEFT OVERRIDE>d"),
        ("你好。\u3000再见", "你好。□再见"),
        ("👩\u200d👧 می\u200cخواهم", "👩\u200d👧 می\u200cخواهم"),
        ("", ""),
    ],
)
def test_signs_stand_for_what_cannot_be_seen(text: str, seen: str) -> None:
    assert shown(text) == seen


def test_only_signs_are_marked_as_signs() -> None:
    assert [tuple(piece) for piece in iter_pieces(" a\n")] == [
        ("·", True),
        ("a", False),
        ("↵\n", True),
    ]
