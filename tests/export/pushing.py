"""The least that is an adapter, and pushing it to the Hub of the tests."""

import json
from pathlib import Path

import mlx.core as mx

from tests.export.conftest import Command, Result
from tests.export.hub_state import Hub


def save_adapter(folder: Path, rows: int) -> Path:
    folder.mkdir()
    weights = {"model.layers.0.x.lora_a": mx.random.normal((rows, 100))}
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    config = {"num_layers": 1, "model": "a/b", "lora_parameters": {"rank": 100, "scale": 1.0}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


LEAST = {"README.md", "adapter_config.json", "adapters.safetensors"}


def push(command: Command, folder: Path, *more: object, **options: str) -> Result:
    """A push without sample answers, which take seconds."""
    return command("push", folder, "--repo", "ann/polite", "--samples", 0, *more, **options)


def head(hub: Hub) -> str:
    return hub.store.repo("models", "ann/polite").branches["main"]
