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


@pytest.mark.parametrize(
    ("system", "machine", "cpu_build", "devices", "visible", "gpu"),
    [
        ("darwin", "arm64", False, 0, None, True),
        ("darwin", "x86_64", False, 0, None, False),
        ("linux", "x86_64", True, 1, None, False),
        ("linux", "x86_64", False, 0, None, False),
        ("linux", "x86_64", False, 1, None, True),
        ("linux", "x86_64", False, 1, "0", True),
        ("linux", "x86_64", False, 1, "", False),
        ("linux", "x86_64", False, 1, "-1", False),
    ],
)
def test_a_gpu_is_known_without_mlx(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    system: str,
    machine: str,
    cpu_build: bool,
    devices: int,
    visible: str | None,
    gpu: bool,
) -> None:
    monkeypatch.setattr(backend.sys, "platform", system)
    monkeypatch.setattr(backend.platform, "machine", lambda: machine)
    monkeypatch.setattr(backend, "is_cpu_build", lambda: cpu_build)
    monkeypatch.setattr(backend, "_DEVICES", tmp_path)
    for number in range(devices):
        (tmp_path / f"nvidia{number}").touch()
    (tmp_path / "nvidiactl").touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert backend.has_gpu() == gpu


@pytest.mark.parametrize(
    ("info", "limit"),
    [
        ({"max_recommended_working_set_size": 7, "memory_size": 9}, 7),
        ({"total_memory": 8}, 8),
        ({}, backend.total_bytes()),
    ],
)
def test_what_arrays_may_take_is_the_devices(
    monkeypatch: pytest.MonkeyPatch, info: dict[str, int], limit: int
) -> None:
    monkeypatch.setattr(mx, "device_info", lambda: info)
    assert backend.memory_limit_bytes() == limit
