"""A PEFT adapter's adapter_config.json: its ranks and scales, and what mlx-lm does not support."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import regex

from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.files import load_json_object

PEFT_CONFIG = "adapter_config.json"
MAX_RANK = 8192
MAX_ALPHA = 1e6
LONGEST_PATTERN = 300
SECONDS = 5.0  # of processor time for all patterns and names of a file together
_WHOLE = r"(.*\.)?({})$"
# Anything but their absence would change what the tensors mean.
UNKNOWN = {
    "lora_bias": "biases of its own",
    "fan_in_fan_out": "transposed weights",
    "layer_replication": "repeated layers",
    "trainable_token_indices": "single rows of the embedding",
    "alora_invocation_tokens": "adapters that begin at a token (aLoRA)",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "Arrow's mixture of adapters",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "megatron_config": "Megatron's layers",
}
# These begin by taking something out of the base's own weights.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class PatternMatcher:
    """Matches module names with the patterns of one file, within SECONDS of processor time."""

    def __init__(self) -> None:
        self._left = SECONDS
        self._compiled: dict[str, regex.Pattern[str]] = {}  # regex's own cache holds 500

    def find(self, patterns: Iterable[str], name: str) -> str:
        """The first pattern that a name matches, or the name: peft.utils.get_pattern_key.

        Raises OrpoError if the time is used up.
        """
        for pattern in patterns:
            started = process_time()
            try:
                if self._matches(pattern, name):
                    return pattern
            except TimeoutError:
                raise OrpoError(
                    f"{PEFT_CONFIG}: its patterns take more than {SECONDS:g} s to match; the time "
                    f"ran out at {pattern[:60]!r} and {name}. Name the modules instead."
                ) from None
            finally:
                self._left -= process_time() - started
        return name

    def _matches(self, pattern: str, name: str) -> bool:
        if self._left <= 0:  # which regex would read as no limit
            raise TimeoutError
        if pattern not in self._compiled:
            self._compiled[pattern] = regex.compile(_WHOLE.format(pattern))
        # regex measures its timeout in processor time too.
        return bool(self._compiled[pattern].match(name, timeout=self._left))


class PeftSettings(NamedTuple):
    """What the config says about its tensors."""

    rank: int
    alpha: float
    rslora: bool
    dora: bool
    ranks: Mapping[str, int]  # by pattern
    alphas: Mapping[str, float]  # by pattern
    parameters: tuple[str, ...]  # target_parameters
    base: str  # the base it was made for, "" if it does not name one
    matcher: PatternMatcher

    def scale_of(self, name: str, rank: int) -> float:
        """The factor of a module's product; `name` is transformers' name of what was targeted."""
        alpha = self.alphas.get(self.matcher.find(self.alphas, name), self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def rank_of(self, name: str) -> int:
        """The rank that the config gives a module."""
        return self.ranks.get(self.matcher.find(self.ranks, name), self.rank)


def read_peft_config(folder: Path, name: str) -> PeftSettings:
    """The settings of an adapter that the user calls `name`.

    Raises OrpoError, with all of it, for what is damaged and for what mlx-lm does not support.
    """
    config = _load(folder / PEFT_CONFIG, name)
    if (kind := config.get("peft_type")) != "LORA":
        raise OrpoError(f"{name}: {PEFT_CONFIG} has peft_type {kind!r} (allowed: 'LORA').")
    problems = [f"{key}: mlx-lm has no {what}" for key, what in UNKNOWN.items() if config.get(key)]
    if (bias := config.get("bias", "none")) != "none":
        problems.append(f"bias: {bias!r} (allowed: 'none'): mlx-lm trains no biases")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        problems.append(
            f"init_lora_weights: {start!r} changes the base's own weights: in PEFT, save it by "
            "save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    if isinstance(saved := config.get("modules_to_save"), list) and saved:
        problems.append(
            f"modules_to_save: full weights of {', '.join(map(str, saved))}, which an adapter of "
            "mlx-lm does not hold: run merge_and_unload() in PEFT and convert the model"
        )
    problems += _number_problems(config)
    if problems:
        raise collected(f"{name}: {PEFT_CONFIG} cannot be imported:", problems)
    return PeftSettings(
        config["r"],
        config["lora_alpha"],
        bool(config.get("use_rslora")),
        bool(config.get("use_dora")),
        config.get("rank_pattern") or {},
        config.get("alpha_pattern") or {},
        tuple(config.get("target_parameters") or ()),
        str(config.get("base_model_name_or_path") or ""),
        PatternMatcher(),
    )


def _load(file: Path, name: str) -> dict[str, Any]:
    if not file.is_file():
        raise OrpoError(f"{name}: no {PEFT_CONFIG} there: not a PEFT adapter.")
    config = load_json_object(file, f"{name}: {PEFT_CONFIG}")
    if "lora_parameters" in config:
        raise OrpoError(f"{name} is an adapter of mlx-lm already: name it with --adapter.")
    return config


def _number_problems(config: Mapping[str, Any]) -> list[str]:
    problems = []
    if not _is_rank(config.get("r")):
        problems.append(f"r: {config.get('r')!r} (allowed: 1 to {MAX_RANK})")
    if not _is_alpha(config.get("lora_alpha")):
        problems.append(
            f"lora_alpha: {config.get('lora_alpha')!r} (allowed: up to {MAX_ALPHA:,.0f})"
        )
    for key, allowed in (("rank_pattern", _is_rank), ("alpha_pattern", _is_alpha)):
        patterns: Any = config.get(key) or {}
        if not isinstance(patterns, dict):
            problems.append(f"{key}: {str(patterns)[:60]!r} is not a JSON object")
            continue
        for pattern, value in patterns.items():
            if not allowed(value):
                problems.append(f"{key}: {pattern!r} has the value {value!r}")
            if why := _pattern_problem(pattern):
                problems.append(f"{key}: {pattern[:60]!r} {why}")
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str | None):
        problems.append(f"base_model_name_or_path: {str(base)[:60]!r} is not a name")
    targets = config.get("target_parameters") or []
    if not isinstance(targets, list) or not all(isinstance(t, str) for t in targets):
        problems.append("target_parameters: not a list of names")
    return problems


def _is_rank(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_RANK


def _is_alpha(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= MAX_ALPHA  # False for NaN


def _pattern_problem(pattern: str) -> str:
    """Why a regular expression from elsewhere cannot be used as PEFT does, or ""."""
    if len(pattern) > LONGEST_PATTERN:
        return f"is longer than {LONGEST_PATTERN} characters"
    try:
        re.compile(_WHOLE.format(pattern))
        regex.compile(_WHOLE.format(pattern))
    except (re.error, regex.error, OverflowError, RecursionError) as error:
        return f"is not a pattern ({error})"
    return ""
