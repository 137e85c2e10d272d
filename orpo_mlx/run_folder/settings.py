"""A run's config.yaml: every setting as it was used, and going on with the same. Imports no mlx."""

import datetime as dt
from collections.abc import Mapping
from glob import has_magic
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from orpo_mlx.config.groups import LEAVE
from orpo_mlx.config.train import TrainConfig
from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.files import replacing, user_path
from orpo_mlx.run_folder.folder import CONFIG
from orpo_mlx.yaml_files import load_yaml_settings

# The rules that a run was started under, in its config.yaml; absent means 1. By 1 the pairs nearest
# to the fraction are held out, by 2 every prompt whose draw is below it (data/pairs/split.py). By 3
# the pairs of a step do not depend on the size of its micro-batches (training/plan.py). By 4 weight
# decay spares norms and biases (training/optim.py).
RULES = 4
# What may be changed when a run is resumed: all else would make it another run.
MAY_CHANGE = {
    LEAVE,
    "resume",
    "overwrite",
    "output",
    "eval_every",
    "eval_pairs",
    "save_every",
    "keep_checkpoints",
    "grad_checkpoint",
    "plain",
    "best_metric",
    "early_stop",
    "final",
    "on_nan",
    "sample_prompts",
    "log_to",
    "micro_batch_size",  # not under rules 1 and 2
    "supervise",
    "hang_minutes",
    "segment_steps",
    "cooldown",
    "display_sleep",
}
# Of these, what the run goes on with from then on.
KEPT_CHANGES = ("grad_checkpoint", "micro_batch_size")


def save_run_config(config: TrainConfig, date: dt.date, thinking: bool, *, rules: int) -> None:
    """config.yaml: every setting as it was used, so that the run can be made again."""
    values = effective_settings(config)
    values |= {"thinking": "on" if thinking else "off", "template_date": date.isoformat()}
    values["rules"] = rules
    with replacing(config.output / CONFIG) as file:
        file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def save_adapter_step(output: Path, step: int) -> None:
    """Add to config.yaml the step whose weights the run folder's adapter has."""
    values = load_run_config(output) | {"adapter_step": step}
    with replacing(output / CONFIG) as file:
        file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def adapter_step_of(output: Path) -> int | None:
    """The step that `save_adapter_step` added; None before that."""
    step = load_run_config(output).get("adapter_step")
    return step if type(step) is int else None


def effective_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings with what an absent one means, and paths that hold from any folder."""
    values = config.model_dump(mode="json", exclude={"resume", "overwrite", LEAVE})
    values["learning_rate"] = config.peak_learning_rate
    values["max_prompt_length"] = config.max_prompt_length or config.max_seq_length // 2
    if config.steps is None:
        values["epochs"] = config.epochs or 1.0
    for name in ("data", "sft_data", "valid_data"):
        values[name] = [_absolute_source(source) for source in values[name]]
    for name in ("model", "chat_template", "adapter", "sample_prompts"):
        values[name] = values[name] and _absolute(values[name])
    return values


def _absolute(path: str) -> str:
    """The full path of what is there; a Hub id stays."""
    location = user_path(path)
    return str(location.resolve()) if location.exists() else path


def _absolute_source(text: str) -> str:
    """The same of a source, which may have a weight, or name files by a pattern."""
    # Here, since it loads numpy, which a supervised run's first process does without.
    from orpo_mlx.data.reading.sources import bare_name

    name = bare_name(text)
    absolute = _absolute(name)
    if absolute == name and has_magic(name):
        absolute = str(Path.cwd() / user_path(name))
    return absolute + text[len(name) :]


def load_run_config(output: Path) -> dict[str, Any]:
    """The settings of a run; raises OrpoError if there is none."""
    file = output / CONFIG
    if not file.is_file():
        raise OrpoError(f"{output} holds no run: there is no {CONFIG}.")
    values = load_yaml_settings(file)
    values.pop(LEAVE, None)  # runs of version 0.1 have it
    return values


def rules_of(stored: Mapping[str, Any]) -> int:
    """The rules that a run was started under; raises OrpoError for those of a newer version."""
    rules = stored.get("rules", 1)
    if type(rules) is not int or not 1 <= rules <= RULES:
        raise OrpoError(
            f"{CONFIG} of the run: rules: {rules} is not known to this version of orpo-mlx "
            f"(1 to {RULES}). Install the version that started the run."
        )
    return rules


def stored_settings(output: Path, **changes: Any) -> TrainConfig:
    """The settings of a run, with these changes; raises OrpoError if config.yaml is damaged."""
    # Runs that were begun before the option keep all their checkpoints.
    stored = {"keep_checkpoints": None} | load_run_config(output) | {"output": output}
    try:
        return TrainConfig.model_validate(stored | changes)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise collected(f"{output / CONFIG} is damaged:", problems) from None


def check_same_run(config: TrainConfig) -> TrainConfig:
    """The settings for --resume: the stored ones; raises OrpoError for others that are given."""
    stored = load_run_config(config.output)
    original = stored_settings(config.output)
    may_change = MAY_CHANGE if rules_of(stored) >= 3 else MAY_CHANGE - {"micro_batch_size"}
    given = config.model_fields_set - may_change
    if config.thinking == "auto":
        given -= {"thinking"}  # it was resolved from the same pairs
    was, now = effective_settings(original), effective_settings(config)
    changed = [f"{n}: was {was[n]}, now {now[n]}" for n in sorted(given) if was[n] != now[n]]
    if changed:
        why = collected("--resume goes on with the run's own settings:", changed)
        raise OrpoError(f"{why}\nLeave them out.")
    new_values = {n: getattr(config, n) for n in config.model_fields_set & may_change}
    size = new_values.get("micro_batch_size")
    if isinstance(size, int) and original.batch_size % size:
        raise OrpoError(
            f"--micro-batch-size {size}: must divide the run's --batch-size {original.batch_size}."
        )
    return original.model_copy(update=new_values)


def keep_changes(config: TrainConfig) -> list[str]:
    """Write into config.yaml with what else a resumed run goes on; a sentence for each change of
    its numbers."""
    stored = load_run_config(config.output)
    values = effective_settings(config)
    changes = {n: values[n] for n in KEPT_CHANGES if values[n] != stored.get(n, values[n])}
    if not changes:
        return []
    with replacing(config.output / CONFIG) as file:
        file.write_text(yaml.safe_dump(stored | changes, sort_keys=False), encoding="utf-8")
    if "micro_batch_size" not in changes:
        return []
    masks = ", and the masks of --dropout are others" if config.dropout else ""
    return [
        f"--micro-batch-size {values['micro_batch_size']} from here on (it was "
        f"{stored['micro_batch_size']}): the sums of a step are rounded in another order{masks}."
    ]
