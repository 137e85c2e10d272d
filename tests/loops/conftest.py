"""Prompts of a loop, in a folder of its own."""

from pathlib import Path

import pytest

from tests.loops.scripted import save_prompts


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty prompts, in a folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return save_prompts(Path("prompts.txt"), 40)
