"""The fast BLAS where its copy cannot be kept, and the bounds of a GPU's memory."""

from pathlib import Path

import mlx.core as mx
import pytest

from orpo_mlx import backend


def test_the_blas_is_there_next_to_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ORPO_MLX_CACHE", str(tmp_path / "file" / "inside"))
    library = backend.renamed_openblas()
    assert library.stat().st_size > 1_000_000
    assert tmp_path not in library.parents


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"max_recommended_working_set_size": 96, "memory_size": 128}, {"wired": 96, "cache": 16}),
        ({"memory_size": 128}, {"cache": 16}),
        ({}, {}),
    ],
)
def test_the_wired_limit_is_what_the_device_recommends(
    monkeypatch: pytest.MonkeyPatch, info: dict[str, int], expected: dict[str, int]
) -> None:
    limits: dict[str, int] = {}
    monkeypatch.setattr(mx, "device_info", lambda: info)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "set_wired_limit", lambda size: limits.update(wired=size))
    monkeypatch.setattr(mx, "set_cache_limit", lambda size: limits.update(cache=size))
    backend.limit_memory()
    assert limits == expected
