from orpo_mlx.data.quality.by_model import RenderedFacts, find_rendered
from tests.data.quality.rows import pair, rows


def test_cut_same_and_refused_rows_are_named_with_their_reason() -> None:
    data = rows(pair(), pair(), pair(), pair(chosen="Same.", rejected="same"), pair())
    facts = [
        RenderedFacts(("chosen",)),
        RenderedFacts(same=True),
        RenderedFacts(refused="the template drops the reasoning of a response"),
        RenderedFacts(same=True),  # reported before rendering
        RenderedFacts(),
    ]
    by_name = {f.name: f for f in find_rendered(data, facts, 512)}
    assert {name: f.rows for name, f in by_name.items()} == {
        "cut": ("a.jsonl:1",),
        "same_rendered": ("a.jsonl:2",),
        "refused": ("a.jsonl:3",),
    }
    assert {f.severity for f in by_name.values()} == {"severe"}
    assert by_name["cut"].threshold == "--max-seq-length 512"
    assert by_name["refused"].examples[0].detail == "the template drops the reasoning of a response"
    assert by_name["cut"].total == 5


def test_what_the_tokenizer_does_to_rows_is_severe() -> None:
    data = rows(pair(), pair(), pair())
    lost = "no tokens for 2 of 9 characters ('好的') of chosen"
    facts = [RenderedFacts(same_tokens=True), RenderedFacts(unwritten=lost), RenderedFacts()]
    by_name = {f.name: f for f in find_rendered(data, facts, 512)}
    assert {name: f.rows for name, f in by_name.items()} == {
        "same_tokens": ("a.jsonl:1",),
        "unwritten": ("a.jsonl:2",),
    }
    assert {f.severity for f in by_name.values()} == {"severe"}
    assert by_name["unwritten"].examples[0].detail == lost
