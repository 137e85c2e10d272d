import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from orpo_mlx.config.data import DataCheckConfig
from orpo_mlx.data.quality.check import Report
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event, Notice
from orpo_mlx.review.pairs.check import check_data, report_json
from tests import tiny
from tests.counting import count_calls
from tests.data.quality.clean import clean_rows
from tests.data.tokens.lossy import LOSSY, encoder_of

SAMPLES = Path(__file__).parents[3] / "orpo_mlx" / "data" / "samples"
Json = dict[str, Any]


def rows_named(report: Report, name: str) -> set[str]:
    return {Path(location).name for f in report.findings if f.name == name for location in f.rows}


def write(file: Path, rows: list[Any]) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def sample(split: str) -> list[Json]:
    return [json.loads(line) for line in (SAMPLES / f"{split}.jsonl").read_text().splitlines()]


def test_the_bundled_pairs_show_nothing_severe_and_the_warnings_true_of_them() -> None:
    report = check_data(DataCheckConfig(data=[str(SAMPLES)]))
    assert report.pairs == {"train": 240, "valid": 40, "test": 40}
    assert report.severe == []
    # By the card: steps are numbered in most chosen answers, and the words tell the pairs apart.
    assert {f.name for f in report.findings if f.severity == "warning"} == {"list_items", "words"}
    assert report.words is not None
    assert 0.9 <= report.words.accuracy <= 1


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def messages(row: Json, *prompt: Json) -> Json:
    answers = {s: [{"role": "assistant", "content": row[s]}] for s in ("chosen", "rejected")}
    return {"prompt": list(prompt), **answers}


# Kind of damage, the finding that names it, and what becomes of a row: itself, and rows added.
DAMAGES: list[tuple[str, Callable[[Json], list[Any]]]] = [
    ("unreadable", lambda r: [json.dumps(r)[:-30]]),
    ("empty", lambda r: [{**r, "chosen": ""}]),
    ("equal", lambda r: [{**r, "rejected": r["chosen"]}]),
    ("near_equal", lambda r: [{**r, "rejected": r["chosen"].upper() + "!"}]),
    ("echo", lambda r: [{**r, "chosen": f"{r['prompt']} {r['chosen']}"}]),
    ("markers", lambda r: [{**r, "rejected": r["rejected"] + "<|im_end|>\n<|im_start|>user"}]),
    ("mojibake", lambda r: [{**r, "chosen": "Itâ€™s fine. " + r["chosen"]}]),
    ("swapped", lambda r: [r, {**r, "chosen": r["rejected"], "rejected": r["chosen"]}]),
    ("both_ways", lambda r: [r, {**r, "chosen": r["rejected"], "rejected": "No idea."}]),
    ("duplicate", lambda r: [r, r]),
    ("near_duplicate", lambda r: [r, {**r, "chosen": f"Well. {r['chosen']}"}]),
    ("truncated", lambda r: [{**r, "chosen": r["chosen"][:200].rstrip(" .!?")}]),
    ("open_fence", lambda r: [{**r, "chosen": r["chosen"] + "\n```\nreset --all"}]),
    ("refusal", lambda r: [{**r, "chosen": "I'm sorry, but I can't help with that."}]),
]


@pytest.mark.parametrize("seed", range(3))
def test_a_copy_of_the_bundled_pairs_with_planted_damage_names_every_row(
    tmp_path: Path, seed: int
) -> None:
    rows: list[Any] = list(sample("train"))
    drawn = Random(seed).sample(range(len(rows)), len(DAMAGES) + 1)
    wanted: dict[str, set[str]] = {}
    added: list[Any] = []
    for (name, damage), number in zip(DAMAGES, drawn[1:], strict=True):
        rows[number], *more = damage(rows[number])
        wanted[name] = {f"train.jsonl:{number + 1}"}
        for row in more:
            added.append(row)
            wanted[name].add(f"train.jsonl:{len(rows) + len(added)}")
    wanted["leak"] = {f"train.jsonl:{drawn[0] + 1}", "test.jsonl:41"}
    write(tmp_path / "train.jsonl", [*rows, *added])
    write(tmp_path / "test.jsonl", [*sample("test"), rows[drawn[0]]])
    report = check_data(DataCheckConfig(data=[str(tmp_path)]))
    damaged = set[str]().union(*wanted.values())
    for name, locations in wanted.items():
        named = rows_named(report, name)
        assert locations <= named <= damaged, name
    severe = {"unreadable", "empty", "equal", "near_equal", "echo", "markers", "mojibake",
              "swapped", "both_ways", "leak"}  # fmt: skip
    assert {f.name for f in report.severe} == severe


def test_turns_out_of_order_are_named(tmp_path: Path) -> None:
    rows = [messages(r, user(r["prompt"])) for r in sample("test")]
    rows[4]["prompt"].append(user("Are you there?"))
    report = check_data(DataCheckConfig(data=[str(write(tmp_path / "a.jsonl", rows))]))
    assert rows_named(report, "alternation") == {"a.jsonl:5"}


def test_files_named_like_splits_are_compared_with_each_other(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{n}.jsonl", sample("test")[:9]) for n in ("train", "dev", "other")]
    report = check_data(DataCheckConfig(data=[str(f) for f in files]))
    assert report.pairs == {"all": 9, "train": 9, "valid": 9}
    assert len(rows_named(report, "leak")) == 27


def test_a_folder_without_train_is_read_and_one_without_splits_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", sample("test"))
    assert check_data(DataCheckConfig(data=[str(tmp_path)])).pairs == {"test": 40}
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(OrpoError):
        check_data(DataCheckConfig(data=[str(tmp_path)]))


def test_a_weight_behind_a_source_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", sample("test"))
    assert check_data(DataCheckConfig(data=[f"{tmp_path}:2"])).pairs == {"train": 40}


def test_rows_that_give_no_pair_are_a_note_with_their_reason(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"How do I repair kettle {i}?",
            "completion": f"Answer {i}{label}.",
            "label": label,
        }
        for i in range(30)
        for label in (True, False)
    ]
    report = check_data(DataCheckConfig(data=[str(write(tmp_path / "kto.jsonl", rows[:-1]))]))
    (note,) = [f for f in report.findings if f.name == "left_out"]
    assert report.pairs == {"all": 29}
    assert note.what.startswith("rows that give no pair are left out: 1 x ")


def test_four_times_the_pairs_are_checked_with_four_times_the_calls(tmp_path: Path) -> None:
    rows = clean_rows(Random(0), 100)

    def calls(count: int) -> int:
        file = tmp_path / f"{count}.jsonl"
        write(file, [row._asdict() for row in rows[:count]])
        return count_calls(lambda: check_data(DataCheckConfig(data=[str(file)])))

    calls(50)  # what is imported or compiled once
    assert calls(400) < 4.4 * calls(100)  # a tenth more: more of them are nearly alike


def test_json_holds_every_row_named_and_the_figures(tmp_path: Path) -> None:
    rows = sample("test")
    file = write(tmp_path / "a.jsonl", [*rows, *rows])
    written = json.loads(json.dumps(report_json(check_data(DataCheckConfig(data=[str(file)])))))
    (duplicate,) = [f for f in written["findings"] if f["name"] == "duplicate"]
    assert len(duplicate["rows"]) == 80
    assert duplicate["examples"][0]["detail"].startswith("the same as ")
    assert written["cues"][0]["name"] == "length in characters"
    assert written["thresholds"]["cue"] == 0.65
    assert written["pairs"] == {"all": 80}


@pytest.fixture(scope="module")
def judged(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A check with a base: row 3 is too long, row 5 is the same once trimmed, all small."""
    rows = [tiny.toy_pair(n) for n in range(12)]
    rows[2]["chosen"] = "please check the router " * 60
    file = write(tmp_path_factory.mktemp("check") / "a.jsonl", rows)
    return check_data(
        DataCheckConfig(data=[str(file)], model=str(llama), pairs=6, max_seq_length=128)
    )


def test_a_base_shows_what_its_length_limit_cuts(judged: Report) -> None:
    assert rows_named(judged, "cut") == {"a.jsonl:3"}


def test_a_base_judges_the_first_pairs(judged: Report, llama: Path) -> None:
    assert len(judged.margins) == 6
    (base,) = [f for f in judged.findings if f.name == "base"]
    assert base.total == 6
    assert base.figures["logps/chosen"] < 0
    assert base.figures["margin"] == pytest.approx(sum(judged.margins) / 6)


def test_margins_are_those_that_evaluate_measures(llama: Path, tmp_path: Path) -> None:
    from orpo_mlx.config.train import EvaluateConfig
    from orpo_mlx.training.evaluate import evaluate

    file = str(tiny.save_pairs(tmp_path / "a.jsonl", 8))
    report = check_data(DataCheckConfig(data=[file], model=str(llama)))
    values = evaluate(EvaluateConfig(data=[file], model=str(llama))).base.values
    wanted = values["logps/chosen"] - values["logps/rejected"]
    assert report.margins == pytest.approx(list(wanted), abs=1e-5)  # float32, another batch


def test_what_rows_are_read_as_is_reported_once(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / f"{split}.jsonl", sample(split))
    events: list[Event] = []
    check_data(DataCheckConfig(data=[str(tmp_path)]), events.append)
    assert len([e for e in events if isinstance(e, Notice) and "read as" in e.text]) == 1


def test_what_a_tokenizer_cannot_write_is_severe(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base")
    encoder_of(LOSSY["BPE"]()).tokenizer.save_pretrained(str(base))
    answers = [
        ("please check", "later"),
        ("please 好", "later"),
        ("好的好的", "later"),
        ("好", "不"),
    ]
    answers.append(("please check the bill 好", "please check the bill 不"))
    rows = [{"prompt": "hello", "chosen": c, "rejected": r} for c, r in answers]
    file = write(tmp_path / "a.jsonl", rows)
    report = check_data(DataCheckConfig(data=[str(file)], model=str(base)))
    assert rows_named(report, "unwritten") == {f"a.jsonl:{n}" for n in (2, 3, 4, 5)}
    assert rows_named(report, "same_tokens") == {"a.jsonl:5"}
    assert {"unwritten", "same_tokens"} <= {finding.name for finding in report.severe}
    assert rows_named(report, "same_rendered") == set()
