"""Rope settings that transformers 5 keeps in `rope_parameters`, put where mlx-lm 0.32 reads them.

Without that mlx-lm takes its own default theta, silently. Knows nothing of weights.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from orpo_mlx.errors import OrpoError
from orpo_mlx.model.mlx_lm_api import get_classes, text_arguments

LAYER_KINDS = {"full_attention", "sliding_attention"}
# What mlx-lm's model arguments call a setting, and the value at which it need not be given.
NAMES: dict[str, tuple[tuple[str, ...], Any]] = {
    "rope_theta": (("rope_theta", "rotary_emb_base"), 10000.0),
    "partial_rotary_factor": (("partial_rotary_factor", "rotary_pct"), 1.0),
    "sliding rope_theta": (("rope_local_base_freq", "swa_rope_theta"), None),
    "rope_scaling": (("rope_scaling",), None),
}
# They take the argument and never use it.
IGNORE_SCALING = ("gemma3n", "glm4_moe", "kimi_linear", "mixtral", "qwen3_moe", "solar_open")


def rope_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that config.json lacks for mlx-lm to compute what transformers 5 computes.

    Raises OrpoError for settings that mlx-lm's model of this type has no argument for.
    """
    missing = _missing_keys(config, _argument_names(config))
    text = config.get("text_config")
    if isinstance(text, dict) and (
        nested := _missing_keys(text, _text_argument_names(config, text))
    ):
        missing["text_config"] = {**text, **nested}
    return missing


def rope_notices(settings: Mapping[str, Any]) -> list[str]:
    """A sentence for the user of a base whose config lacks these settings."""
    if all(value is None for value in settings.values()):
        return []
    return [
        f"{', '.join(settings)}: read from where transformers 5 writes it in config.json. "
        "mlx-lm's own commands do not look there and would compute this base differently."
    ]


def _missing_keys(config: Mapping[str, Any], fields: set[str] | None) -> dict[str, Any]:
    missing: dict[str, Any] = {"num_experts": config.get("num_local_experts")}
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and rope:
        missing |= _relocated(_wanted(rope, fields), config, fields)
        missing["sliding_window_pattern"] = _pattern(config, fields)
        if fields and "rope_scaling" in fields:
            # Some classes ask for it by name even where there is none.
            missing.setdefault("rope_scaling", None)
    return {
        key: value
        for key, value in missing.items()
        if config.get(key) is None
        and (value is not None or (key == "rope_scaling" and key not in config))
        and (fields is None or key in fields)
    }


def _wanted(rope: Mapping[str, Any], fields: set[str] | None) -> dict[str, Any]:
    """The settings of `rope_parameters` by the names of NAMES."""
    nested = bool(set(rope) & LAYER_KINDS)
    if fields is not None and "rope_parameters" in fields:
        # The class reads it by itself, but perhaps theta alone.
        scaling = None if nested or "rope_scaling" not in fields else _scaling(rope)
        return {"rope_scaling": scaling}
    if not nested:
        return {
            "rope_theta": rope.get("rope_theta"),
            "partial_rotary_factor": rope.get("partial_rotary_factor"),
            "rope_scaling": _scaling(rope),
        }
    full, sliding = (rope.get(k) or {} for k in ("full_attention", "sliding_attention"))
    settings = _wanted(full, fields)
    theta, partial = (sliding.get(k) for k in ("rope_theta", "partial_rotary_factor"))
    if set(rope) - LAYER_KINDS or _scaling(sliding) or partial != settings["partial_rotary_factor"]:
        raise OrpoError(f"rope_parameters {dict(rope)}: mlx-lm does not support these.")
    local_names = NAMES["sliding rope_theta"][0]
    if theta != settings["rope_theta"] or fields is None or fields & set(local_names):
        settings["sliding rope_theta"] = theta
    return settings


def _relocated(
    wanted: Mapping[str, Any], config: Mapping[str, Any], fields: set[str] | None
) -> dict[str, Any]:
    """The settings under the names that the class has; raises OrpoError for what it lacks."""
    named, unsupported = {}, []
    for setting, value in wanted.items():
        names, neutral = NAMES[setting]
        if value is None:
            continue
        known = [n for n in names if fields is None or n in fields]
        ignored = setting == "rope_scaling" and config.get("model_type") in IGNORE_SCALING
        if known and not ignored:
            named[known[0]] = value
        elif value != neutral:
            unsupported.append(f"{setting} {value}")
    if unsupported:
        raise OrpoError(
            f"mlx-lm's model of type {config.get('model_type')} does not support "
            f"{' and '.join(unsupported)} (rope_parameters in config.json)."
        )
    return named


def _pattern(config: Mapping[str, Any], fields: set[str] | None) -> int | None:
    """Every how many layers attention is full, for classes that do not read `layer_types`."""
    kinds = list(config.get("layer_types") or [])
    if fields is None or "layer_types" in fields or set(kinds) != LAYER_KINDS:
        return None
    pattern = kinds.index("full_attention") + 1
    regular = all((k == "full_attention") == (not i % pattern) for i, k in enumerate(kinds, 1))
    if "sliding_window_pattern" in fields and not regular:
        raise OrpoError(f"layer_types {kinds}: mlx-lm does not support an irregular pattern.")
    return pattern


def _scaling(rope: Mapping[str, Any]) -> dict[str, Any] | None:
    """The older `rope_scaling`, or None for plain rope."""
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return None
    rest = {k: v for k, v in rope.items() if k not in ("rope_theta", "partial_rotary_factor")}
    return {"type": kind, **rest}


def _argument_names(config: Mapping[str, Any]) -> set[str] | None:
    """The fields of the model's arguments; None if the class is not mlx-lm's own, or not known."""
    if config.get("model_file") or not config.get("model_type"):
        return None
    try:
        _, arguments = get_classes(dict(config))
    except ValueError:
        return None
    return {field.name for field in dataclasses.fields(arguments)}


def _text_argument_names(config: Mapping[str, Any], text: Mapping[str, Any]) -> set[str] | None:
    """The same of a multimodal model's text part; by its type alone another model may be meant."""
    names = _argument_names(text)
    if names is None or _argument_names(config) is None:
        return names
    _, wrapper = get_classes(dict(config))
    own = text_arguments(wrapper)
    return {field.name for field in dataclasses.fields(own)} if own else names
