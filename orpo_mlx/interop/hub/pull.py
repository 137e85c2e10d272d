"""Fetch an adapter from the Hub: safetensors, JSON and tokenizer only, checked before use."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import snapshot_download
from huggingface_hub.utils import filter_repo_objects

from orpo_mlx.config.interop import PullConfig
from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.events import Callback, Notice
from orpo_mlx.files import (
    check_new_folder,
    load_json_object,
    recover,
    replacing,
    size_text,
    temporary_folder,
)
from orpo_mlx.hub_errors import hub_errors
from orpo_mlx.interop.hub.bundle import MLX_FOLDER
from orpo_mlx.interop.hub.client import check_repo_name, forward_hub_logs, open_hub, with_retries
from orpo_mlx.interop.hub.uploads import ADAPTER_CONFIG, CARD, PEFT_WEIGHTS, RUN_PARTS, WEIGHTS
from orpo_mlx.model.safetensors import read_header
from orpo_mlx.run_folder.lock import locked

# What is fetched of a folder in the repo: never pickle, never code.
WANTED = (WEIGHTS, PEFT_WEIGHTS, CARD, *RUN_PARTS, "additional_chat_templates/*.jinja")
LAYOUTS = {WEIGHTS: "mlx", PEFT_WEIGHTS: "peft"}


class Pulled(NamedTuple):
    """What was fetched."""

    repo: str
    commit: str
    output: Path
    layout: str  # mlx or peft
    base: str  # "" if the adapter does not name it
    files: list[tuple[str, int]]  # with their bytes


def pull(
    config: PullConfig, report: Callback = lambda event: None, *, bars: bool = False
) -> Pulled:
    """Fetch an adapter into a folder of its own, mlx-lm's layout if the repo has it.

    Raises OrpoError for a repo without an adapter, for one that is damaged, and for a folder in
    which a run is under way.
    """
    check_repo_name(config.repo)
    # Before the lock: it makes the folder, and then nothing would be put back.
    recover(config.output, report)
    with locked(config.output, report):
        return _pull(config, report, bars=bars)


def _pull(config: PullConfig, report: Callback, *, bars: bool) -> Pulled:
    check_new_folder(config.output, report, overwrite=config.overwrite)
    with (
        forward_hub_logs(report, bars=bars),
        temporary_folder(report) as temporary,
    ):
        commit, files = _list_files(config, report)
        inside, weights = _locate_adapter(config.repo, files)
        wanted = [f"{inside}{name}" for name in WANTED] + [CARD]
        chosen = list(filter_repo_objects(files, allow_patterns=wanted))
        _check_paths(config.repo, chosen)
        report(
            Notice(
                f"Fetching {len(chosen)} files, {size_text(sum(files[f] for f in chosen))}, of "
                f"{config.repo} at {commit[:12]}."
            )
        )
        fetched = temporary / "fetched"
        with hub_errors("give", config.repo):
            snapshot_download(
                config.repo, revision=commit, allow_patterns=chosen, local_dir=fetched
            )
        settings = _read_settings(fetched / inside, weights, config.repo)
        with replacing(config.output) as folder:
            _gather(fetched, inside, folder)
            kept = [
                (f.relative_to(folder).as_posix(), f.stat().st_size)
                for f in sorted(folder.rglob("*"))
                if f.is_file()
            ]
    layout = LAYOUTS[weights]
    base = str(settings.get("model") or settings.get("base_model_name_or_path") or "")
    _report_next_step(config, layout, base, report)
    return Pulled(config.repo, commit, config.output, layout, base, kept)


def _list_files(config: PullConfig, report: Callback) -> tuple[str, dict[str, int]]:
    """The commit that is fetched, and its files with their bytes."""
    api = open_hub()
    with hub_errors("look at", config.repo):
        info = with_retries(
            lambda: api.model_info(config.repo, revision=config.revision, files_metadata=True),
            report,
        )
        assert info.sha
        return info.sha, {s.rfilename: s.size or 0 for s in info.siblings or []}


def _locate_adapter(repo: str, files: dict[str, int]) -> tuple[str, str]:
    """The folder of the repo that holds the adapter, as a prefix, and the file of its weights."""
    for inside, weights in (
        ("", WEIGHTS),
        (f"{MLX_FOLDER}/", WEIGHTS),
        ("", PEFT_WEIGHTS),
    ):
        if inside + weights in files:
            return inside, weights
    pickled = sorted(f for f in files if f.endswith((".bin", ".pt", ".pth", ".npz")))
    why = f" {', '.join(pickled[:3])} is never loaded: it can run code." if pickled else ""
    listing = ", ".join(sorted(files)[:8]) or "nothing"
    raise OrpoError(
        f"{repo} holds no adapter: neither {WEIGHTS} nor {PEFT_WEIGHTS} (found: {listing}).{why} A "
        "model is fetched by --model, pairs by --data."
    )


def _check_paths(repo: str, files: list[str]) -> None:
    """Raise OrpoError for names that lead out of the folder."""
    bad = [f for f in files if "\\" in f or {"..", "."} & set(f.split("/")) or f.startswith("/")]
    if bad:
        raise collected(f"{repo} names files outside its own folder:", [repr(f) for f in bad])


def _read_settings(folder: Path, weights: str, repo: str) -> dict[str, Any]:
    """The adapter's config; raises OrpoError if it or the weights are damaged."""
    read_header(folder / weights)
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        raise OrpoError(
            f"{repo}: no {ADAPTER_CONFIG} next to {weights}: the adapter is incomplete."
        )
    return load_json_object(file, f"{repo}: {ADAPTER_CONFIG}")


def _gather(fetched: Path, inside: str, folder: Path) -> None:
    """The files of the adapter, and the card, without the library's own cache."""
    shutil.copytree(fetched / inside, folder, ignore=shutil.ignore_patterns(".cache", MLX_FOLDER))
    if (fetched / CARD).is_file():
        shutil.copyfile(fetched / CARD, folder / CARD)


def _report_next_step(config: PullConfig, layout: str, base: str, report: Callback) -> None:
    """What the adapter needs, and the next command."""
    report(
        Notice(f"It needs the base {base}." if base else "It does not name the base that it needs.")
    )
    base_name = base or "BASE"
    if layout == "peft":
        report(
            Notice(
                "It is in PEFT's layout. Convert it to mlx-lm's: orpo-mlx import "
                f"{config.output} --model {base_name} --output FOLDER"
            )
        )
    else:
        report(
            Notice(
                f"Use it: orpo-mlx generate --model {base_name} --adapter {config.output} "
                "--prompt TEXT"
            )
        )
