"""In which settings runs differ: from the defaults, and from each other. Imports no mlx."""

from collections.abc import Mapping, Sequence
from typing import Any

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.run_folder.settings import effective_settings

# Of config.yaml, what every run has of its own, or what is shown elsewhere.
OWN = {"model", "data", "output", "rules", "template_date", "adapter_step"}


def changed_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's config.yaml, the settings that are not what they are when nothing is given."""
    # What an absent setting means depends on these two.
    given = {name: config[name] for name in ("fine_tune_type", "max_seq_length") if name in config}
    try:
        usual = effective_settings(
            TrainConfig.model_validate({"model": "-", "data": ["-"], "output": "-", **given})
        )
    except ValueError:  # of another version
        usual = {}
    usual |= {name: TrainConfig.model_fields[name].default for name in given} | {"thinking": "off"}
    return {
        name: value
        for name, value in config.items()
        if name not in OWN and value is not None and value != usual.get(name)
    }


def differing_settings(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """By name, the settings that are not the same in all runs; None where one has it not."""
    names = dict.fromkeys(name for config in configs for name in config)
    values = {name: [config.get(name) for config in configs] for name in names if name != "output"}
    return {name: row for name, row in values.items() if any(v != row[0] for v in row)}
