"""The fast BLAS where its copy cannot be kept."""

from pathlib import Path

import pytest

from orpo_mlx import backend


def test_the_blas_is_there_beside_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ORPO_MLX_CACHE", str(tmp_path / "file" / "inside"))
    library = backend.renamed_openblas()
    assert library.stat().st_size > 1_000_000
    assert tmp_path not in library.parents
