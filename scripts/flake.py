"""Run the tests marked touchy again and again in random order, every other time next to busy loops.

Prints the seed of each run, and ends at the first that fails.
"""

import argparse
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Ends with the process that started it, however that ends.
BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
LOOPS = 2
# One process, so that a run is what its seed says.
PYTEST = ["-m", "pytest", "-q", "-p", "no:xdist", "--random-order"]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tests", nargs="*", help="files or tests [all that are marked]")
    parser.add_argument("--runs", type=int, default=20, help="half of them next to loops [20]")
    parser.add_argument("--seed", type=int, help="of the first run, then one more each [random]")
    parser.add_argument(
        "--marked", default="touchy and not long and not soak", help="pytest's -m [%(default)s]"
    )
    return parser.parse_args(arguments)


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    first = random.randrange(10**6) if options.seed is None else options.seed
    for number in range(options.runs):
        seed, loops = first + number, LOOPS * (number % 2)
        print(f"Run {number + 1} of {options.runs}: seed {seed}, {loops} busy loops.", flush=True)
        chosen = ["-m", options.marked, f"--random-order-seed={seed}", *options.tests]
        with busy_loops(loops):
            status = subprocess.run([sys.executable, *PYTEST, *chosen]).returncode
        if status:
            print(f"Failed with seed {seed} next to {loops} busy loops.", flush=True)
            return status
    print(f"{options.runs} runs passed, seeds {first} to {first + options.runs - 1}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
