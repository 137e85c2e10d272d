"""What of the errors of all libraries is a disk that is full, or cannot be written at all."""

import errno
import re

_DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota on this disk is used up",
    errno.EROFS: "the disk is read-only",
}
# As Rust's libraries and Python write the system's numbers.
_SYSTEM_ERROR = re.compile(r"(?:os error |\berrno )(\d+)", re.IGNORECASE)


def why_disk_refuses(error: BaseException) -> str:
    """Whether it is the disk, full or read-only, behind an error of whatever library; "" if not."""
    written = _SYSTEM_ERROR.search(str(error))
    code = getattr(error, "errno", None) or (int(written[1]) if written else None)
    return _DISK.get(code or 0, "")
