"""Measure this project's fast and plain path, and mlx-lm-lora, on the same work in one run."""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.bench import BASES, BenchOptions, RandomBase, iter_results
from benchmarks.table import NOTE, render_workload
from benchmarks.workloads import WORKLOADS
from orpo_mlx.demo.base import fetch_demo_base
from orpo_mlx.errors import OrpoError


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    names = ", ".join(WORKLOADS)
    parser.add_argument("--workload", action="append", help=f"one of {names}; repeatable")
    parser.add_argument(
        "--steps", type=int, help="at least so many timed steps, in full passes [3 passes]"
    )
    parser.add_argument(
        "--peer-python", metavar="PATH", help="an interpreter that has mlx-lm-lora 5.10.2"
    )
    parser.add_argument(
        "--contestant", action="append", help="fast, plain or peer; repeatable [all]"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    parser.add_argument("--grad-checkpoint", action="store_true", help="in all tools")
    parser.add_argument(
        "--compile", action="store_true", help="mx.compile on in all tools, else off"
    )
    parser.add_argument("--num-layers", type=int, default=-1, help="adapt the last N blocks [all]")
    parser.add_argument("--model", help="folder or Hub id of a dense text model [the demo base]")
    parser.add_argument("--base", choices=BASES, help="a random model of this kind instead")
    parser.add_argument("--layers", type=int, help="a random model (llama) with this many blocks")
    parser.add_argument("--hidden", type=int, help="its width, a multiple of 64")
    parser.add_argument("--vocab", type=int, help="its vocabulary")
    parser.add_argument("--value-heads", type=int, help="qwen3_5's gated delta heads [4]")
    return parser.parse_args(arguments)


def options_of(given: argparse.Namespace) -> BenchOptions:
    size = {
        "layers": given.layers,
        "hidden": given.hidden,
        "vocabulary": given.vocab,
        "value_heads": given.value_heads,
    }
    size = {name: value for name, value in size.items() if value}
    if given.base or size:
        model: str | RandomBase = BASES[given.base or "llama"]._replace(**size)
    else:
        model = given.model or str(fetch_demo_base())
    return BenchOptions(
        model,
        given.workload or list(WORKLOADS),
        given.steps,
        given.contestant,
        given.peer_python,
        given.num_layers,
        given.grad_checkpoint,
        given.compile,
    )


def main(arguments: list[str]) -> int:
    given = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    by_workload = {}
    try:
        for name, results in iter_results(options_of(given), lambda t: print(t, file=sys.stderr)):
            by_workload[name] = results
            console.print(render_workload(name, results))
            if given.json:
                given.json.write_text(json.dumps({"workloads": by_workload}, indent=2) + "\n")
    except OrpoError as error:
        print(error, file=sys.stderr)
        return 1
    console.print(NOTE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
