"""The command that installs an extra for this copy of the package, however it was installed.

Standard library only, and any Python from 3.9: the doctor and backend.py need it.
"""

import json
import shlex
import shutil
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

CHECKOUT = Path(__file__).parents[1]


def pip_install(extra: str) -> str:
    """Like `pip install 'orpo-mlx[check]'`, or with the checkout's path, or the wheel's."""
    return f"{_pip_install()} {_requirement(extra)}"


def _pip_install() -> str:
    """By this environment's `pip`, by this interpreter with -m pip, or by uv where it has none."""
    pip = shutil.which("pip")
    if pip and Path(pip).parent == Path(sys.executable).parent:
        return "pip install"
    if find_spec("pip") is None and shutil.which("uv"):
        return f"uv pip install --python {shlex.quote(sys.executable)}"
    return f"{shlex.quote(sys.executable)} -m pip install"


def _requirement(extra: str) -> str:
    origin = _origin()
    url = str(origin.get("url", ""))
    if "vcs_info" in origin:
        vcs = origin["vcs_info"]
        return f"'orpo-mlx[{extra}] @ {vcs['vcs']}+{url}@{vcs['commit_id']}'"
    if "archive_info" in origin and not url.startswith("file:"):
        return f"'orpo-mlx[{extra}] @ {url}'"
    path = Path(url2pathname(urlsplit(url).path)) if url.startswith("file:") else None
    if path is None or not path.exists():
        return f"'orpo-mlx[{extra}]'"
    editable = origin.get("dir_info", {}).get("editable", False)
    written = shlex.quote(f"{path}[{extra}]")
    return f"-e {written}" if editable else written


def _origin() -> "dict[str, Any]":
    """What pip recorded of where this copy came from (PEP 610); a checkout that is run in place."""
    try:
        text = metadata.distribution("orpo-mlx").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        if (CHECKOUT / "pyproject.toml").is_file():
            return {"url": CHECKOUT.as_uri(), "dir_info": {"editable": True}}
        return {}
    return dict(json.loads(text)) if text else {}
