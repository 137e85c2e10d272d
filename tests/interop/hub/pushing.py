"""The least that is an adapter, and pushing it to the Hub of the tests."""

from pathlib import Path

from tests.interop.conftest import Command, Result
from tests.interop.hub.state import Hub

LEAST = {"README.md", "adapter_config.json", "adapters.safetensors"}


def push(command: Command, folder: Path, *more: object, **options: str) -> Result:
    """A push without sample answers, which take seconds."""
    return command("push", folder, "--repo", "ann/polite", "--samples", 0, *more, **options)


def head(hub: Hub) -> str:
    return hub.store.repo("models", "ann/polite").branches["main"]
