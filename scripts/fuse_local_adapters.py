"""Fuse every adapter under adapters/ whose base is on this machine, each to fused/NAME."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from orpo_mlx import backend
from orpo_mlx.cli.progress import Display
from orpo_mlx.errors import OrpoError

if TYPE_CHECKING:
    from orpo_mlx.interop.fuse.local import Outcome


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--adapters", type=Path, default=Path("adapters"), help="folder of run folders [adapters]"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("fused"), help="folder of fused folders [fused]"
    )
    parser.add_argument("--dequantize", action="store_true", help="write plain weights")
    parser.add_argument("--overwrite", action="store_true", help="replace fused folders")
    return parser.parse_args(arguments)


def row(outcome: "Outcome") -> tuple[str, str, str]:
    if not outcome.fused:
        state = "failed" if outcome.failed else "left out"
        return outcome.name, state, outcome.why.splitlines()[0]
    drift = outcome.fused.drift
    cost = f"KL {drift.kl_fused:.5f} nats a token" if drift else "not measured"
    return (
        outcome.name,
        "fused",
        f"{outcome.fused.output}, {outcome.fused.size_bytes / 1e9:.2f} GB, {cost}",
    )


def main(arguments: list[str]) -> int:
    given = parse(arguments)
    backend.prepare()  # before anything imports mlx
    from orpo_mlx.interop.fuse.local import fuse_local

    outcomes: list[Outcome] = []
    try:
        with Display() as display:
            for outcome in fuse_local(
                given.adapters, given.output, dequantize=given.dequantize,
                overwrite=given.overwrite, report=display,
            ):  # fmt: skip
                outcomes.append(outcome)
                if outcome.failed:
                    print(f"{outcome.name}: {outcome.why}", file=sys.stderr)
    except OrpoError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    table = Table("adapter", "outcome", "where or why")
    for outcome in outcomes:
        table.add_row(*row(outcome))
    Console().print(table)
    return int(any(outcome.failed for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
