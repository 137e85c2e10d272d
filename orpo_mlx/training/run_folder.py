"""The run folder: what may be written there, its config.yaml, and going on with it.

Imports no mlx, so that the command line can look at a run before anything is loaded.
"""

import datetime as dt
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from orpo_mlx.config import TrainConfig
from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.files import check_writable, remove, replacing

CONFIG, METRICS, MODEL, CHECKPOINTS = "config.yaml", "metrics.jsonl", "model", "checkpoints"
ADAPTER = ("adapters.safetensors", "adapter_config.json")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "generation_config.json", "tokenizer.model", "vocab.json", "vocab.txt",
    "merges.txt", "additional_chat_templates",
)  # fmt: skip
RUN_FILES = (CONFIG, METRICS, MODEL, CHECKPOINTS, *ADAPTER, *TOKENIZER_FILES)
# What a resumed run may be told anew: all else would make it another run.
MAY_CHANGE = {"resume", "overwrite", "output", "eval_every", "eval_pairs", "save_every"}


def check_output(config: TrainConfig) -> None:
    """Raise OrpoError if the run folder cannot be written, or holds what was not to be replaced."""
    output = config.output
    check_writable(output)
    if not output.exists():
        if config.resume:
            raise OrpoError(f"--resume: there is no run at {output}.")
        return
    if not output.is_dir():
        raise OrpoError(f"--output {output} is a file. Name a folder.")
    found = sorted(p.name for p in output.iterdir() if not p.name.startswith("."))
    if not found or config.resume:
        return
    if not holds_run(output):
        raise OrpoError(
            f"--output {output} holds other files ({', '.join(found[:3])}) and no run. "
            "Name another folder."
        )
    if not config.overwrite:
        raise OrpoError(
            f"{output} exists. Continue it with --resume, replace it with --overwrite, "
            "or name another folder with --output."
        )


def holds_run(output: Path) -> bool:
    """Whether a folder holds a run of ours, or an adapter of mlx-lm's."""
    return any((output / name).exists() for name in (CONFIG, *ADAPTER))


def clear_run(output: Path) -> None:
    """Remove what a run wrote, and nothing else."""
    for name in RUN_FILES:
        remove(output / name)


def clear_strays(output: Path) -> None:
    """Remove the temporary folders that a killed run left (orpo_mlx.files.replacing)."""
    for name in (*RUN_FILES, "tokenizer"):
        for stray in output.glob(f".{name}.*"):
            remove(stray)
    for stray in (output / CHECKPOINTS).glob(".step-*"):
        remove(stray)


def save_run_config(config: TrainConfig, date: dt.date, thinking: bool) -> None:
    """config.yaml: every setting as it was used, so that the run can be made again."""
    values = config.model_dump(mode="json", exclude={"resume", "overwrite"})
    values |= {"thinking": "on" if thinking else "off", "template_date": date.isoformat()}
    with replacing(config.output / CONFIG) as file:
        file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def load_run_config(output: Path) -> dict[str, Any]:
    """The settings of a run; raises OrpoError if there is none."""
    file = output / CONFIG
    if not file.is_file():
        raise OrpoError(f"{output} holds no run: there is no {CONFIG}.")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise OrpoError(f"{file} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise OrpoError(f"{file} is damaged: it must hold 'key: value' lines.")
    return values


def check_same_run(config: TrainConfig) -> TrainConfig:
    """The settings for --resume: the stored ones; raises OrpoError for those given anew."""
    stored = load_run_config(config.output)
    try:
        original = TrainConfig.model_validate(stored | {"output": config.output})
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise collected(f"{config.output / CONFIG} is damaged:", problems) from None
    given = config.model_fields_set - MAY_CHANGE
    if config.thinking == "auto":
        given -= {"thinking"}  # it was resolved from the same pairs
    changed = [
        f"{name}: was {getattr(original, name)}, now {getattr(config, name)}"
        for name in sorted(given)
        if getattr(config, name) != getattr(original, name)
    ]
    if changed:
        why = collected("--resume goes on with the run's own settings:", changed)
        raise OrpoError(f"{why}\nLeave them out.")
    anew = {n: getattr(config, n) for n in config.model_fields_set & MAY_CHANGE}
    return original.model_copy(update=anew)
