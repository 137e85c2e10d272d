"""What a push would send, without a Hub."""

from pathlib import Path
from typing import Any

from orpo_mlx.config.interop import PushConfig
from orpo_mlx.events import Event, Notice
from orpo_mlx.interop.hub.bundle import Bundle, pack


def packed(folder: Path, tmp_path: Path, **options: Any) -> tuple[Bundle, list[str]]:
    """The bundle of a push without sample answers, and its notices."""
    notices: list[str] = []

    def report(event: Event) -> None:
        if isinstance(event, Notice):
            notices.append(event.text)

    config = PushConfig(folder=folder, repo="ann/polite", **{"samples": 0, **options})
    return pack(config, tmp_path, report), notices


def content(bundle: Bundle, path: str) -> bytes:
    [upload] = [u for u in bundle.uploads if u.path == path]
    return upload.source if isinstance(upload.source, bytes) else upload.source.read_bytes()
