"""The one exception that a user can act on."""

from collections.abc import Sequence

MAX_SHOWN = 20


class OrpoError(Exception):
    """Something the user can fix: the command line prints its message alone and exits with 1."""


def collected(heading: str, problems: Sequence[str]) -> OrpoError:
    """One error for all problems of an input: a heading, then a line each, at most MAX_SHOWN."""
    lines = [heading, *(f"  {p}" for p in problems[:MAX_SHOWN])]
    if len(problems) > MAX_SHOWN:
        lines.append(f"  ... and {len(problems) - MAX_SHOWN:,} more")
    return OrpoError("\n".join(lines))


class DiskError(OrpoError):
    """The disk is full, or cannot be written at all."""


class DeviceError(OrpoError):
    """The device failed or has no memory left: the same work may well succeed in a new process."""
