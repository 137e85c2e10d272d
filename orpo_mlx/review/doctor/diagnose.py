"""All checks in order: the installation first, and what needs mlx in a process of its own."""

from collections.abc import Iterator

from orpo_mlx.review.doctor.check import Check, Running
from orpo_mlx.review.doctor.install import iter_install_checks
from orpo_mlx.review.doctor.process import iter_checks_apart


def diagnose() -> Iterator[Running | Check]:
    """The checks as they begin and end."""
    yield from iter_install_checks()
    yield from iter_checks_apart()
