"""Sources to cached token ids: the same in one process or in several, and rebuilt when due."""

import datetime as dt
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orpo_mlx.data.pairs.load import Reading, load_pairs
from orpo_mlx.data.pairs.split import prompt_hash
from orpo_mlx.data.reading.sources import Source, find_sources
from orpo_mlx.data.tokens import cache, pipeline
from orpo_mlx.data.tokens.encode import CHECKED_BOUNDARIES, encode_pairs
from orpo_mlx.data.tokens.encoder import Encoder
from orpo_mlx.data.tokens.pipeline import Loader, UnreadableError, report_of
from orpo_mlx.data.tokens.store import FACTS, PAIRS_FILE, StoredPairs
from orpo_mlx.errors import OrpoError
from orpo_mlx.training.plan import Plan
from tests import tiny
from tests.counting import count_calls
from tests.data.rows import build, lines_of
from tests.data.tokens.lossy import LOSSY, encoder_of
from tests.training.runs import settings

CLOCK = "{{ strftime_now('%d') }}" + tiny.CHATML


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORPO_MLX_CACHE", str(tmp_path / "cache"))


def source(file: Path) -> Source:
    return find_sources([str(file)], splits=["train"])[0]


def loader(encoder: Encoder | None = None, **settings: Any) -> Loader:
    settings.setdefault("reading", Reading())
    return Loader(encoder or build(), cache=cache.token_cache(), **settings)


def rows_file(folder: Path, count: int = 700, name: str = "pairs.jsonl") -> Path:
    return tiny.save_pairs(folder / name, count)


@pytest.mark.touchy
@pytest.mark.parametrize("processes", [1, 3])
def test_ids_are_those_of_the_pairs_whoever_makes_them(tmp_path: Path, processes: int) -> None:
    file = rows_file(tmp_path)
    done: list[tuple[int, int]] = []
    stored = loader(processes=processes).load(source(file), lambda *progress: done.append(progress))
    pairs = load_pairs(file)
    expected, report = encode_pairs(pairs, build())
    stored_pairs = StoredPairs([stored])
    assert len(stored_pairs) == len(expected) == 700
    for ours, theirs in zip(stored_pairs, expected, strict=True):
        assert ours.location == theirs.location
        assert all(np.array_equal(a, b) for a, b in zip(ours[:3], theirs[:3], strict=True))
    assert stored.prompt_hashes.tolist() == [prompt_hash(pair) for pair in pairs]
    kept = report_of(stored)
    assert (kept.pairs, kept.kept) == (700, 700)
    assert lines_of(kept) == lines_of(report)
    assert done[-1] == (700, 700)
    assert all(650 <= total <= 750 for _, total in done)


def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which sources are tokenized from now on."""
    names: list[str] = []
    whole = pipeline._tasks

    def watched(source: Source, *rest: Any) -> Any:
        names.append(Path(source.name).name)
        return whole(source, *rest)

    monkeypatch.setattr(pipeline, "_tasks", watched)
    return names


def test_the_same_again_comes_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, file = made(monkeypatch), rows_file(tmp_path)
    first = loader().load(source(file))
    os.utime(file, (1, 1))  # the content counts
    second = loader().load(source(file))
    assert names == ["pairs.jsonl"]
    assert StoredPairs([first]).digest == StoredPairs([second]).digest
    assert report_of(second) == report_of(first)


def test_every_text_is_rendered_and_tokenized_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[str] = []
    texts: list[str] = []
    render, tokenize = Encoder.render_pair, Encoder._ids_of

    def render_pair(self: Encoder, pair: Any, notes: Any) -> Any:
        rendered.append(pair.location)
        return render(self, pair, notes)

    def ids_of(self: Encoder, given: Any) -> Any:
        texts.extend(given)
        return tokenize(self, given)

    monkeypatch.setattr(Encoder, "render_pair", render_pair)
    monkeypatch.setattr(Encoder, "_ids_of", ids_of)
    file = rows_file(tmp_path)
    loader(processes=1).load(source(file))
    assert sorted(rendered) == sorted(f"{file}:{number}" for number in range(1, 701))
    # A prompt and two answers of each pair; of the first 200 these again, and both whole texts.
    once = 3 * 700 + (3 + 2) * CHECKED_BOUNDARIES
    assert 0 <= len(texts) - once < 10  # and the template's own marks


def test_a_second_start_works_by_the_batch_not_by_the_pair(tmp_path: Path) -> None:
    def calls(pairs: int) -> int:
        file = rows_file(tmp_path, pairs, f"{pairs}.jsonl")
        loader(processes=1).load(source(file))
        config = settings(tmp_path / "base", file, tmp_path / "run")

        def first_micro_batch() -> None:
            stored = StoredPairs([loader(processes=1).load(source(file))])
            plan = Plan(stored, config, rounded=False)
            assert all(len(stored[int(i)].prompt) for part in plan.step(0) for i in part)

        first_micro_batch()
        return count_calls(first_micro_batch)

    assert calls(4000) - calls(2000) < 2000  # less than one call a pair more


CHANGES: dict[str, dict[str, Any]] = {
    "thinking": {"thinking": True},
    "arguments": {"arguments": {"tone": "kind"}},
    "max_seq_length": {"max_seq_length": 100},
    "max_prompt_length": {"max_prompt_length": 9},
    "tokenizer": {"fingerprint": "another"},
    "end token": {"end_ids": frozenset([1, 2, 3])},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_ids_depend_on_rebuilds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    names, file = made(monkeypatch), rows_file(tmp_path, 3)
    loader().load(source(file))
    loader(replace(build(), **change)).load(source(file))
    assert len(names) == 2


def test_content_reading_and_template_rebuild_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, file = made(monkeypatch), rows_file(tmp_path, 3)
    loader().load(source(file))
    loader(drop_bad=True).load(source(file))
    loader(reading=Reading(format="prompt")).load(source(file))
    loader(build(" " + tiny.CHATML)).load(source(file))
    text = json.loads(file.read_text().split("\n")[0])
    text["chosen"] += "!"
    file.write_text(json.dumps(text) + "\n")
    loader().load(source(file))
    assert len(names) == 5


def test_the_date_counts_where_the_template_reads_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, file = made(monkeypatch), rows_file(tmp_path, 3)
    for template, fresh in ((tiny.CHATML, 1), (CLOCK, 2)):
        names.clear()
        for day in (1, 2):
            loader(build(template, date=dt.date(2026, 1, day))).load(source(file))
        assert len(names) == fresh


def test_a_file_that_changes_within_a_clock_tick_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("one")
    first = cache.digest_of(file)
    state = file.stat()
    file.write_text("two")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert cache.digest_of(file) != first


def test_the_digest_of_an_unchanged_file_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a"
    file.write_text("one")
    monkeypatch.setattr(cache, "GRAIN_SECONDS", -1)
    digest = cache.digest_of(file)

    def refused(*arguments: Any) -> Any:
        raise AssertionError("read again")

    monkeypatch.setattr(cache.hashlib, "file_digest", refused)
    assert cache.digest_of(file) == digest


@pytest.mark.touchy
def test_what_is_not_read_is_reported_with_its_first_line_from_the_cache_too(
    tmp_path: Path,
) -> None:
    file = rows_file(tmp_path, 600)
    lines = file.read_text().splitlines()
    nested = {"messages": [{"role": "user", "content": "hi", "weight": 1}], "seed": 7}
    odd = json.dumps(json.loads(lines[0]) | {"prompt": nested})
    file.write_text("\n".join([*lines, odd, odd]) + "\n")
    expected = [
        (2, f'"prompt.seed", which is not read (first: {file}:601)'),
        (2, f'"weight" of a message (user), which the template does not write (first: {file}:601)'),
    ]
    for processes in (2, 1):  # the second reads the entry
        store = loader(processes=processes).load(source(file))
        assert sorted(report_of(store).counts()) == expected


def test_bad_rows_are_all_in_the_outcome_and_nothing_is_kept(tmp_path: Path) -> None:
    file = rows_file(tmp_path, 600)
    lines = file.read_text().splitlines()
    lines[9], lines[410] = "{", json.dumps({"prompt": "p", "chosen": None, "rejected": "r"})
    file.write_text("\n".join(lines))
    with pytest.raises(UnreadableError) as caught:
        loader(processes=2).load(source(file))
    assert [p.location for p in caught.value.report.problems] == [f"{file}:10", f"{file}:411"]
    assert not list(cache.token_cache().glob("*/" + FACTS))
    kept = loader(drop_bad=True).load(source(file))
    assert len(kept) == 598
    assert sum(report_of(kept).rows_left_out.values()) == 2


@pytest.mark.parametrize("name", [PAIRS_FILE, FACTS, "lengths.bin", "prompts.bin"])
@pytest.mark.parametrize("how", ["gone", "cut", "empty"])
def test_an_incomplete_entry_is_rebuilt(tmp_path: Path, name: str, how: str) -> None:
    file = rows_file(tmp_path, 300)
    whole = loader().load(source(file))
    part = whole.folder / name
    content = part.read_bytes()
    part.unlink()
    if how != "gone":
        part.write_bytes(content[: len(content) // 2 if how == "cut" else 0])
    again = loader().load(source(file))
    assert StoredPairs([again]).digest == StoredPairs([whole]).digest
    assert again.pair(299).location == f"{file}:300"


def test_entries_unused_for_a_month_go(tmp_path: Path) -> None:
    old = loader().load(source(rows_file(tmp_path, 3, "old.jsonl"))).folder
    used = loader().load(source(rows_file(tmp_path, 4, "used.jsonl"))).folder
    month = time.time() - cache.KEPT_SECONDS - 10
    for folder in (old, used):
        os.utime(folder / FACTS, (month, month))
    loader().load(source(tmp_path / "used.jsonl"))
    loader().load(source(rows_file(tmp_path, 5, "new.jsonl")))
    assert (old.exists(), used.exists()) == (False, True)


def test_a_cache_that_cannot_be_written_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ORPO_MLX_CACHE", str(tmp_path / "file" / "inside"))
    folder, why = cache.writable_cache()
    assert folder is None
    assert "is a file" in why and "ORPO_MLX_CACHE" in why


def test_an_empty_file_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "empty.jsonl"
    file.write_text("\n")
    with pytest.raises((UnreadableError, OrpoError)) as caught:
        loader().load(source(file))
    problems = caught.value.report.problems if isinstance(caught.value, UnreadableError) else caught
    assert "empty" in str(problems)


@pytest.mark.parametrize("location", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("name", [PAIRS_FILE, FACTS])
def test_an_entry_with_a_flipped_bit_is_rebuilt(tmp_path: Path, name: str, location: float) -> None:
    file = rows_file(tmp_path, 300)
    whole = loader().load(source(file))
    content = bytearray((whole.folder / name).read_bytes())
    content[int(location * len(content))] ^= 1
    (whole.folder / name).write_bytes(content)
    again = loader().load(source(file))
    assert StoredPairs([again]).digest == StoredPairs([whole]).digest
    assert again.facts == whole.facts


def test_a_file_that_is_changed_while_it_is_read_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = rows_file(tmp_path, 600)
    whole = pipeline._tasks

    def changed(*arguments: Any) -> Any:
        for task in whole(*arguments):
            yield task
            with file.open("a") as stream:
                stream.write("\n")

    monkeypatch.setattr(pipeline, "_tasks", changed)
    with pytest.raises(OrpoError, match="changed while it was being read. Run the command again."):
        loader().load(source(file))
    assert not list(cache.token_cache().glob("*/" + FACTS))


def test_rows_that_the_tokenizer_cannot_write_are_an_error_or_left_out(tmp_path: Path) -> None:
    file = tmp_path / "zh.jsonl"
    rows = [{"prompt": "hello", "chosen": text, "rejected": "later"} for text in ("please", "好的")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoder = encoder_of(LOSSY["unigram"]())
    with pytest.raises(UnreadableError) as error:
        loader(encoder).load(source(file))
    (line,) = error.value.report.unwritten
    assert line.endswith("zh.jsonl:2: no tokens for 2 of 2 characters ('好的') of chosen")
    report = report_of(loader(encoder, drop_bad=True).load(source(file)))
    assert report.kept == 1
    assert lines_of(report) == [
        "1 x row left out: row that the tokenizer has few tokens for",
        "1 x pair with characters that the tokenizer has no tokens for",
    ]
