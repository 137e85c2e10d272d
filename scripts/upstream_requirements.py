"""Print what `make upstream` installs: our dependencies, the newest of those we lean on most."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEWEST = {"mlx", "mlx-lm", "transformers", "peft", "huggingface-hub"}
EXTRAS = ("cpu", "gguf", "hub", "zst", "check")
TESTS = ("pytest", "transformers", "peft")


def unbounded(requirement: str) -> str:
    """A requirement without its versions where the newest is wanted; extras and marker stay."""
    match = re.fullmatch(r"([\w-]+)(\[\w+\])?([^;]*)(;.*)?", requirement)
    assert match, requirement
    name, extras, versions, marker = (part or "" for part in match.groups())
    return f"{name}{extras}{'' if name in NEWEST else versions}{marker}"


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(r for extra in EXTRAS for r in optional[extra]), *TESTS]
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    torch = re.findall(r"^torch==.*$", pinned, re.MULTILINE)
    print("\n".join([*map(unbounded, wanted), *torch]))


if __name__ == "__main__":
    main()
