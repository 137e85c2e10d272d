"""Device, memory, environment and matmul rate, here and with a fault planted in each."""

import platform
import re
import shutil

import mlx.core as mx
import pytest

from orpo_mlx import backend
from orpo_mlx.doctor import machine
from orpo_mlx.doctor.verdict import FAILED, OK, SKIPPED
from orpo_mlx.install_advice import pip_install


@pytest.fixture
def plain_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux with MLX's CPU backend and no NVIDIA GPU."""
    monkeypatch.setattr(backend, "is_cpu", lambda: True)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(machine, "installed", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)


def test_this_machine_is_right() -> None:
    assert machine.check_device().status == OK
    assert machine.check_memory().status == OK
    assert machine.check_environment().status in (OK, SKIPPED)


def test_a_mac_without_metal_is_named(plain_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    check = machine.check_device()
    assert (check.status, "no Metal device" in check.detail) == (FAILED, True)
    assert "virtual machine" in check.remedy


def test_a_cuda_backend_without_a_gpu_is_named(
    plain_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "installed", lambda name: "0.32.4")
    check = machine.check_device()
    assert (check.status, "finds no GPU" in check.detail) == (FAILED, True)
    assert "nvidia-smi" in check.remedy


def test_a_gpu_that_is_not_used_is_mentioned(
    plain_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "NVIDIA" not in machine.check_device().detail
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    check = machine.check_device()
    assert (check.status, pip_install("cuda") in check.detail) == (OK, True)


def test_too_little_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    metal = {"memory_size": 2_000_000_000, "max_recommended_working_set_size": 1_500_000_000}
    monkeypatch.setattr(mx, "device_info", lambda: metal)
    check = machine.check_memory()
    assert check.status == FAILED
    assert check.detail.startswith("2.0 GB, of which macOS lets the GPU take 1.5 GB")


@pytest.mark.parametrize(("value", "status"), [("1", OK), ("0", FAILED), (None, FAILED)])
def test_metal_needs_its_environment(
    monkeypatch: pytest.MonkeyPatch, value: str | None, status: str
) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.delenv(machine.RELAXED, raising=False)
    if value is not None:
        monkeypatch.setenv(machine.RELAXED, value)
    check = machine.check_environment()
    assert (check.name, check.status) == ("Metal environment", status)
    assert machine.RELAXED in check.detail


def test_a_missing_blas_is_named_with_what_to_install(
    on_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = backend._slow("No module named 'scipy_openblas32'")
    monkeypatch.setattr(backend, "prepare", lambda: why)
    monkeypatch.setattr(backend, "matmul_gflops", lambda: 2.0)
    check = machine.check_matmul()
    assert check.status == FAILED
    assert re.match(r"float32, 2 GFLOP/s( on one thread)? \(numpy: \d+\)\. MLX's own", check.detail)
    assert check.detail.endswith("slower than OpenBLAS: No module named 'scipy_openblas32'.")
    assert check.remedy.startswith(
        f"{pip_install('cpu')}, and make sure that files can be created in"
    )


def test_a_blas_that_is_loaded_and_not_used_is_named(
    on_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "prepare", lambda: None)
    monkeypatch.setattr(machine, "_numpy_gflops", lambda: 100.0)
    monkeypatch.setattr(backend, "matmul_gflops", lambda: 90.0)
    assert machine.check_matmul().status == OK
    monkeypatch.setattr(backend, "matmul_gflops", lambda: 5.0)
    check = machine.check_matmul()
    assert (check.status, "does not use the fast BLAS" in check.detail) == (FAILED, True)


def test_a_gpu_is_measured_without_a_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "is_cpu", lambda: False)
    monkeypatch.setattr(backend, "matmul_gflops", lambda size: 10000.0)
    assert machine.check_matmul().detail == "float32, 10,000 GFLOP/s"


def test_kernels_that_are_switched_off_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setenv(machine.RELAXED, "1")
    assert machine.check_environment().detail == f"{machine.RELAXED}=1"
    monkeypatch.setenv("MLX_SDPA_VJP_FALLBACK", "1")
    monkeypatch.setenv("GATED_DELTA_VJP_FALLBACK", "1")
    detail = machine.check_environment().detail
    assert "MLX_SDPA_VJP_FALLBACK=1: attention's gradient takes memory" in detail
    assert "GATED_DELTA_VJP_FALLBACK=1: gradients of gated delta layers loop" in detail
