"""docs/architectures.md shows the results of the comparisons of every family.

`python -m tests.model.family_page` writes that page again.
"""

from pathlib import Path

from orpo_mlx.training import forward_path as paths
from tests import tiny
from tests.families import FAST, REACH
from tests.model.comparison import compared
from tests.model.family_cases import BITS, kinds_of, leaves, model_of

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
HANDED_ON = {
    "attention": "keys and values",
    "attention, recurrent": "keys and values, recurrent states",
    "recurrent": "recurrent states",
}
PLAIN = ["gemma3n"]  # known to have no fast path


def render_page() -> str:
    """The page, from the same comparisons that test_families makes."""
    rows = [_fast_row(family) for family in FAST] + [_plain_row(family) for family in PLAIN]
    return INTRODUCTION + "\n".join(rows) + "\n"


def _fast_row(family: str) -> str:
    cases = [(bits, checkpoint) for bits in BITS for checkpoint in (False, True)]
    wrong = [case for case in cases if not compared(family, *case).right]
    assert not wrong, f"{family}: {wrong}"
    handed_on = HANDED_ON[", ".join(sorted(kinds_of(model_of(family, None))))]
    reach = [key for key, _ in leaves(REACH.get(family, {})) if key in WORDS]
    passed = ", ".join(WORDS[key] for key in sorted(set(reach), reverse=True))
    return f"| `{family}` | tree | {handed_on} | {passed or '-'} | |"


def _plain_row(family: str) -> str:
    _, reason = paths.fast_path(tiny.build_model(family)[0])
    assert reason is not None
    return f"| `{family}` | plain | | | {reason} |"


WORDS = {"sliding_window": "window", "original_max_position_embeddings": "rope threshold"}
INTRODUCTION = """# Architectures

<!-- Written by `python -m tests.model.family_page`. Edits here are lost. -->

`orpo-mlx` trains every architecture that mlx-lm has. There are two paths to the same numbers:

- **tree**: every token of a micro-batch once. The beginning that all prompts share, the part that
  a pair shares, and the two tails are computed level by level, and no logits are kept.
- **plain**: the model's own forward on the chosen and the rejected response, each in full.

The path is found by trying, not by a list of names. A model uses the tree if its head can be
separated from its backbone (the head on the backbone's states gives the model's own logits) and if
each of its caches is one that a level can continue: `KVCache`, `RotatingKVCache`, `ChunkedKVCache`,
`ArraysCache`, or a `CacheList` of them. When a run starts, a pair of its own data must
then give the same values and gradients on the tree and on the model's own forward; if it does not,
the run reports that and uses the plain path. A rope of type `dynamic` past its limit depends on the
length of what is computed together: there every response runs alone.

The table is of tiny random models of each family, float32, LoRA of rank 4 on all linear layers. A
family is listed as "tree" if the log-probs of every response token and the gradient of every
adapter tensor agree with the model's own forward in float64: the error is at most four times that
of the own forward in float32, and never more than 1e-4; unquantized and in 4 bits, with and without
gradient checkpointing. "Passed" names the windows and rope thresholds of the config that the
sequences were longer than.

| Architecture | Path | A level passes on | Passed | Why |
| --- | --- | --- | --- | --- |
"""


if __name__ == "__main__":
    PAGE.write_text(render_page(), encoding="utf-8")
