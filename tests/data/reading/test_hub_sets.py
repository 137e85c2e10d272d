"""Data sets of the Hub, through the cache that datasets keeps: nothing is downloaded here."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets.exceptions import DatasetNotFoundError

from orpo_mlx.data.reading.hub_sets import is_hub_id, load_split
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import find_sources, iter_rows
from orpo_mlx.errors import OrpoError
from orpo_mlx.install_advice import pip_install

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SPLITS = {"train_sft": 1, "train_prefs": 3, "test_prefs": 2}


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    datasets.disable_progress_bars()


def builder_of(folder: Path) -> Any:
    """A builder of three splits that knows them only when they are made."""
    folder.mkdir()
    files = {}
    for split, rows in SPLITS.items():
        file = folder / f"{split}.jsonl"
        file.write_text("".join(f'{{"prompt": "{split} {i}"}}\n' for i in range(rows)))
        files[split] = str(file)
    return datasets.load_dataset_builder("json", data_files=files)


def fill_cache(tmp_path: Path, subset: str = "default") -> None:
    """user/my_set in the cache, as a download from the Hub leaves it."""
    builder = builder_of(tmp_path / f"made-{subset}")
    builder.download_and_prepare()
    cached = tmp_path / "cache" / "user___my_set" / subset / "0.0.0" / COMMIT
    shutil.copytree(builder.cache_dir, cached)
    info = json.loads((cached / "dataset_info.json").read_text())
    info |= {"config_name": subset, "dataset_name": "my_set"}
    for split in info["splits"].values():
        split["dataset_name"] = "my_set"
    (cached / "dataset_info.json").write_text(json.dumps(info))
    for file in cached.glob("json-*.arrow"):
        file.rename(cached / file.name.replace("json-", "my_set-"))


@pytest.mark.parametrize(
    ("name", "is_id"),
    [
        ("user/set", True),
        ("HuggingFaceH4/ultrafeedback_binarized", True),
        ("user/a.b-c_d", True),
        ("set", False),
        ("a/b/c", False),
        ("./set", False),
        ("../set", False),
        ("~/set", False),
        ("/set", False),
        ("user/", False),
        ("üser/set", False),
    ],
)
def test_an_id_is_two_names_with_a_slash(name: str, is_id: bool) -> None:
    assert is_hub_id(name) == is_id


def test_the_cache_is_read_where_the_hub_is_not_reached_and_that_is_logged(tmp_path: Path) -> None:
    fill_cache(tmp_path)
    messages: list[str] = []
    [source] = find_sources(["user/my_set:2.5"], splits=["train"], log=messages.append)
    assert (source.name, source.weight) == ("user/my_set", 2.5)
    assert source.labels == ("user/my_set[train_prefs]",)
    assert [(row.location, row.values["prompt"]) for row in iter_rows(source, ReadReport())] == [
        (f"user/my_set[train_prefs]:row {i + 1}", f"train_prefs {i}") for i in range(3)
    ]
    assert messages == [
        "user/my_set: looking on the Hub",
        f"user/my_set: the Hub cannot be reached: using the copy in the cache, revision {COMMIT}",
        "user/my_set: split train_prefs is read (found: train_sft, train_prefs, test_prefs)",
    ]


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"splits": ["test", "valid"]}, 2),
        ({"splits": ["train"], "split": "train_sft"}, 1),
        ({"splits": ["train"], "subset": "default"}, 3),
        ({"splits": ["train"], "revision": COMMIT}, 3),
        ({"splits": ["train"], "revision": "main"}, 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_split_subset_and_revision_choose(
    tmp_path: Path, options: dict[str, Any], count: int
) -> None:
    fill_cache(tmp_path)
    [source] = find_sources(["user/my_set"], **options)
    assert len(list(iter_rows(source, ReadReport()))) == count


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(OrpoError) as error:
        call()
    return str(error.value)


def test_what_the_cache_does_not_hold_is_reported(tmp_path: Path) -> None:
    fill_cache(tmp_path)
    assert error_of(lambda: load_split("user/my_set", splits=["train"], split="validation")) == (
        "no split named validation (found: train_sft, train_prefs, test_prefs)."
    )
    assert error_of(lambda: load_split("user/my_set", splits=["train"], revision="v2")) == (
        "revision v2 is not available: the Hub cannot be reached, and the cache holds revision "
        f"{COMMIT}. Name that one, or none."
    )
    subset = error_of(lambda: load_split("user/my_set", splits=["train"], subset="other"))
    assert subset.startswith("Couldn't find cache for user/my_set for config 'other'")
    assert subset.endswith(
        "Available configs in the cache: ['default'] Name a subset with --subset."
    )


def test_of_several_subsets_in_the_cache_one_must_be_named(tmp_path: Path) -> None:
    fill_cache(tmp_path, "easy")
    fill_cache(tmp_path, "hard")
    message = error_of(lambda: load_split("user/my_set", splits=["train"]))
    assert "easy" in message
    assert "hard" in message
    assert message.endswith("Name a subset with --subset.")
    assert load_split("user/my_set", splits=["train"], subset="hard")[0] == "train_prefs"


def test_an_id_that_is_in_no_cache_is_reported_as_a_path_too(tmp_path: Path) -> None:
    message = error_of(lambda: find_sources(["user/gone"], splits=["train"], flag="--valid-data"))
    assert message == (
        f"--valid-data user/gone: no such file or folder (from {tmp_path}), and as a data set of "
        "the Hub: the Hub cannot be reached, and the cache does not hold it (Couldn't reach "
        "'user/gone' on the Hub (OfflineModeIsEnabled)). Try again with a network "
        "connection and HF_HUB_OFFLINE unset."
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            DatasetNotFoundError(
                "Dataset 'user/gone' doesn't exist on the Hub or cannot be accessed."
            ),
            "Dataset 'user/gone' doesn't exist on the Hub or cannot be accessed. A private data "
            "set needs: hf auth login",
        ),
        (
            ValueError("Config name is missing.\nPlease pick one among the available configs: [a]"),
            "Config name is missing. Please pick one among the available configs: [a] Name a "
            "subset with --subset.",
        ),
        (
            RuntimeError("Dataset scripts are no longer supported, but found set.py"),
            "cannot be loaded: Dataset scripts are no longer supported, but found set.py",
        ),
        (
            OSError(28, "No space left on device"),
            "cannot be loaded: [Errno 28] No space left on device",
        ),
        (KeyError(), "cannot be loaded: KeyError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_datasets_raises_becomes_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset_builder", fail)
    assert error_of(lambda: load_split("user/gone", splits=["train"])) == message


def test_splits_that_no_card_lists_are_found_by_making_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = builder_of(tmp_path / "made")
    assert builder.info.splits is None
    asked: list[Any] = []

    def load(*args: Any, **options: Any) -> Any:
        asked.append((*args, options))
        return builder

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    messages: list[str] = []
    chosen, files = load_split(
        "user/set", splits=["test"], subset="hard", revision="v2", log=messages.append
    )
    assert asked == [("user/set", "hard", {"revision": "v2"})]
    assert chosen == "test_prefs"
    assert [file.name for file in files] == ["json-test_prefs.arrow"]
    assert messages == [
        "looking on the Hub",
        "split test_prefs is read (found: train_sft, train_prefs, test_prefs)",
    ]


def test_a_damaged_row_of_a_download_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = builder_of(tmp_path / "made")
    (tmp_path / "made" / "train_sft.jsonl").write_text('{"prompt": "x"}\n{"prompt"\n')
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *args, **options: builder)
    message = error_of(lambda: load_split("user/set", splits=["train"]))
    assert message.startswith("cannot be loaded: ")
    assert "An error occurred while generating the dataset" not in message


def test_the_extra_is_named_where_datasets_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = error_of(lambda: find_sources(["user/set"], splits=["train"]))
    assert pip_install("hub") in message
    assert "user/set: no such file or folder" in message
