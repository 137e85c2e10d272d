"""What of a name may leave this machine."""

from pathlib import Path

import pytest

from orpo_mlx.public_names import folder_remover, public_name, without_paths


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("user/set", "user/set"),
        ("user/set:2", "user/set:2"),
        ("acme/pairs.jsonl:2", "pairs.jsonl:2"),
        ("/home/ann/acme:2", "acme:2"),
        ("acme/*.jsonl", "*.jsonl"),
        (r"\\server\ann\pairs", "pairs"),
        (r"ann\deep\pairs.jsonl", "pairs.jsonl"),
        ("user/set[train]:2", "user/set[train]:2"),
        (r"q_proj\n", r"n"),
    ],
)
def test_only_names_of_the_hub_leave_this_machine_whole(name: str, public: str) -> None:
    assert public_name(name) == public


@pytest.mark.parametrize(
    ("sources", "text", "shown"),
    [
        (["/home/ann/p.jsonl"], "/home/ann/p.jsonl:3: bad", "p.jsonl:3: bad"),
        (["acme/p.jsonl:2"], "acme/p.jsonl:3, acme/p.jsonl:4", "p.jsonl:3, p.jsonl:4"),
        (["~/p.jsonl"], "~/p.jsonl: and HOME/p.jsonl:1", "p.jsonl: and p.jsonl:1"),
        (["/a/acme"], "/a/acme/train.jsonl:1 or /b/acme/x", "acme/train.jsonl:1 or /b/acme/x"),
        (["/a/p.jsonl", "/b/p.jsonl"], "/a/p.jsonl:1 = /b/p.jsonl:2", "p.jsonl:1 = p.jsonl (2):2"),
        (["/a/ann/*.jsonl"], "/a/ann/p.jsonl:1", "p.jsonl:1"),
        (["ann/set"], "ann/set[train]:1", "ann/set[train]:1"),
        (["p.jsonl"], "/b/p.jsonl and p.jsonl:1", "/b/p.jsonl and p.jsonl:1"),
        ([], "/a/b", "/a/b"),
    ],
)
def test_pages_name_files_without_the_folders_of_their_sources(
    sources: list[str], text: str, shown: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder_remover(sources)(text.replace("HOME", str(tmp_path))) == shown


def test_only_paths_are_cut_in_the_json_of_a_model() -> None:
    kept = {
        "_name_or_path": "meta/small",
        "auto_map": {"AutoConfig": "own.Config"},
        "model_file": "code/own.py",
        "additional_special_tokens": ["/think", "~"],
        "chat_template": "/{{ messages }}",
        "vocab_file": None,
    }
    assert without_paths(kept) == kept
    paths = {"text_config": {"_name_or_path": "ann/deep/down"}, "files": [{"some_dir": "/ann/x"}]}
    assert without_paths(paths) == {
        "text_config": {"_name_or_path": "down"},
        "files": [{"some_dir": "x"}],
    }
