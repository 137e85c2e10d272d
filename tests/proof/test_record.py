"""What commit f315083 did, which later versions do too; see make.py.

Words may change (help, messages, cards), which pairs a new run holds out, and which form a step
(here they are those of OLD_RULES); commands, options and values may be added; else only FIXED.
"""

import copy
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tests.proof.child import RECORD, START, run_scenario
from tests.proof.comparison import differences, is_exact, tensor_differences
from tests.proof.observed import Observed, load_json, load_record, observe, read_tensors
from tests.proof.scenario import FORMATS

PARTS = ("options", "json_keys", "tokens", "files", "numbers", "card_prompts")
SHOWN = 20
# A push named the user's own folder; leave to run a model's code was kept for later calls. A run
# had neither a lock nor a state, its checkpoints no checksums, and all of them stayed. The best
# validation has a checkpoint now, and config.yaml and --json name the step of the adapter. SFT rows
# may take the place of pairs; the token cache has a column of weights.
NEW_OPTIONS = (
    "best_metric|early_stop|final|on_nan|optimizer|sft_data|sample_prompts|log_to"
    "|supervise|hang_minutes|segment_steps|cooldown|display_sleep"
)
FIXED = re.compile(
    r"out/pulled/config\.yaml > data\[0\]: was 'data/pairs\.jsonl', is 'pairs\.jsonl'"
    r"|[\w/-]+/config\.yaml > trust_remote_code: is gone, was False"
    r"|runs/[\w-]+/(\.lock|state\.json): is new, .*"
    r"|train > (batch_size|rank|steps > anyOf\[0\]) > maximum: is new, \d+"
    r"|(lr-find|sweep|sample|judge|loop|chat|runs[\w -]*): is new, .*"
    r"|train > keep_checkpoints: is new, .*"
    r"|[\w/-]+/config\.yaml > keep_checkpoints: is new, (3|None)"
    r"|[\w/-]+/checkpoints/step-\d+/checksums\.json: is new, .*"
    r"|[\w/-]+/checkpoints/step-\d+/state\.json > format: was 1, is 2"
    rf"|train > ({NEW_OPTIONS}): is new, .*"
    rf"|[\w/-]+/config\.yaml > ({NEW_OPTIONS}|adapter_step): is new, .*"
    r"|(train|resume) > (adapter_step|early_stopped): is new, .*"
    r"|runs/resumed/checkpoints/step-0000004/[\w.]+: is new, .*"
    r"|train > schedule > enum: was \['cosine', 'linear', 'constant'\], "
    r"is \['cosine', 'linear', 'inverse_sqrt', 'constant'\]"
    r"|train > data > (default: is new, \[\]|minItems: is gone, was 1|needed: was True, is False)"
    r"|entries > \w{32} > schema: was .*, is .*"
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which this version ran the scenario. Do not write there."""
    return run_scenario(tmp_path_factory.mktemp("proof"))


@pytest.fixture(scope="module")
def current(work: Path) -> Observed:
    """What this version does."""
    return observe(work)


@pytest.fixture(scope="module")
def recorded() -> Observed:
    """What f315083 did."""
    return load_record(RECORD)


@pytest.fixture(scope="module")
def exact(recorded: Observed, current: Observed) -> bool:
    """Whether bits are compared."""
    return is_exact(recorded.json["facts"], current.json["facts"])


@pytest.mark.parametrize("part", PARTS)
def test_it_does_what_f315083_did(
    recorded: Observed, current: Observed, exact: bool, part: str
) -> None:
    lines = differences(recorded.json[part], current.json[part], exact=exact)
    assert_none(line for line in lines if not FIXED.fullmatch(line))


def test_tensors_are_those_of_f315083(recorded: Observed, current: Observed, exact: bool) -> None:
    assert_none(tensor_differences(recorded.tensors, current.tensors, exact=exact))


def test_its_cached_token_ids_are_not_used_and_are_made_again_alike(
    work: Path, recorded: Observed, current: Observed
) -> None:
    """Since its time rows with reasoning, nulls or nested tools became other ids; these did not."""
    entry = next((START / "cache" / "tokens").iterdir())
    entries, keys = load_json(work / "entries.json"), load_json(work / "keys.json")
    assert (entries["kept"], len(entries["all"])) == ([entry.name], len(FORMATS) + 1)
    assert entry.name not in keys
    assert entry.name in keys.values()
    ids = (seen.json["tokens"]["entries"][entry.name]["ids"] for seen in (recorded, current))
    assert next(ids) == next(ids)


def test_its_killed_run_goes_on_to_the_same_end(work: Path, exact: bool) -> None:
    """Adapter, master weights and moments are those of the run that nothing interrupted."""
    whole, resumed = run_tensors(START / "finished"), run_tensors(work / "runs" / "resumed")
    assert {name.split("/")[-1].split(":")[0] for name in whole} == {
        "adapters.safetensors",
        "weights.safetensors",
        "optimizer.safetensors",
    }
    between = re.compile("step-000000[34]")  # what was resumed from, and the best validation's
    end = {name: value for name, value in resumed.items() if not between.search(name)}
    assert_none(tensor_differences(whole, end, exact=exact))


def test_the_card_of_an_old_run_shows_prompts_that_were_held_out(current: Observed) -> None:
    assert current.json["card_prompts"] == load_json(RECORD / "held_out.json")


def assert_none(lines: Iterable[str]) -> None:
    """Fail with the first lines, whole."""
    shown_lines = list(lines)
    assert not shown_lines, "\n".join([f"{len(shown_lines)} differences:", *shown_lines[:SHOWN]])


def run_tensors(run: Path) -> dict[str, mx.array]:
    """All tensors of a run folder."""
    return {
        f"{file.relative_to(run)}:{name}": value
        for file in sorted(run.rglob("*.safetensors"))
        for name, value in read_tensors(file)
    }


def other_default(options: Any) -> None:
    options["train"]["rank"]["default"] = 17


def a_key_less(keys: Any) -> None:
    del keys["evaluate"]["adapter"]["logps/chosen"]


def other_ids(tokens: Any) -> None:
    next(iter(tokens["entries"].values()))["ids"] = "0"


def other_key(tokens: Any) -> None:
    tokens["entries"]["0"] = tokens["entries"].popitem()[1]


def other_shape(files: Any) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    files["out/peft/adapter_model.safetensors"]["tensors"][name][1] = 8


@pytest.mark.parametrize(
    ("part", "plant"),
    [
        ("options", other_default),
        ("json_keys", a_key_less),
        ("tokens", other_ids),
        ("tokens", other_key),
        ("files", other_shape),
    ],
)
def test_a_planted_difference_is_found(
    recorded: Observed, part: str, plant: Callable[[Any], None]
) -> None:
    changed = copy.deepcopy(recorded.json[part])
    plant(changed)
    assert list(differences(recorded.json[part], changed))
    assert list(differences(recorded.json[part], changed, exact=False))


@pytest.mark.parametrize("exact", [True, False])
def test_a_changed_tensor_is_found(recorded: Observed, exact: bool) -> None:
    """The least change of any tensor's first value that is not rounding."""
    for name, value in recorded.tensors.items():
        whole = mx.array(value).reshape(-1)
        step = 2e-6 if value.dtype == mx.float32 else 0.125
        whole[0] = whole[0] + step if mx.issubdtype(value.dtype, mx.floating) else whole[0] ^ 1
        if exact or mx.issubdtype(value.dtype, mx.floating):
            changed = {name: whole.reshape(value.shape)}
            lines = list(tensor_differences({name: value}, changed, exact=exact))
            assert [line.split(": ")[0] for line in lines] == [name]
