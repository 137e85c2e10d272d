"""A fake Hub, the command line that talks to it as a person's would, and an adapter with its PEFT
folder."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import pytest

from orpo_mlx.config.interop import ExportConfig
from orpo_mlx.interop.peft.exporter import export_peft
from orpo_mlx.training.loop import train
from tests import tiny
from tests.alarm import HANG_SECONDS
from tests.interop.hub.server import running_hub
from tests.interop.hub.state import MULTIPART_ABOVE, TOKEN, Hub
from tests.interop.hub.store import Store
from tests.model.test_adapters import adapted
from tests.training.runs import settings

ROOT = Path(__file__).parents[2]


class Result(NamedTuple):
    status: int
    out: str
    err: str
    waited: list[float]  # seconds between tries


Command = Callable[..., Result]


@pytest.fixture(scope="session")
def _hub_and_worker(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Hub, "subprocess.Popen[str]"]]:
    home = tmp_path_factory.mktemp("home")
    with running_hub(tmp_path_factory.mktemp("hub")) as hub:
        own = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        environment = own | {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(home / "hf"),
            "HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "NO_PROXY": "127.0.0.1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        worker = subprocess.Popen(
            [sys.executable, "-m", "tests.interop.hub.worker"],
            env=environment,
            cwd=home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert worker.stdin and worker.stdout
        yield hub, worker
        worker.stdin.close()
        worker.wait(timeout=HANG_SECONDS)
        worker.stdout.close()


@pytest.fixture
def hub(_hub_and_worker: tuple[Hub, Any], tmp_path: Path) -> Iterator[Hub]:
    """An empty Hub that knows the user ann; the library must not send it what it does not know."""
    hub, _ = _hub_and_worker
    hub.store = Store(tmp_path / "hub")
    hub.failures, hub.seen, hub.refused, hub.lost, hub.before = [], [], [], [], {}
    hub.multipart_above = MULTIPART_ABOVE
    yield hub
    assert hub.refused == []
    assert hub.failures == [], "a failure was planted that no request met"


@pytest.fixture
def command(_hub_and_worker: tuple[Hub, Any]) -> Command:
    """Runs `orpo-mlx ARGUMENTS` with that Hub, logged in as ann unless a token is given."""
    _, worker = _hub_and_worker

    def call(*arguments: object, token: str = TOKEN) -> Result:
        request = {"arguments": [str(a) for a in arguments], "token": token}
        worker.stdin.write(json.dumps(request) + "\n")
        worker.stdin.flush()
        result = Result(**json.loads(worker.stdout.readline()))
        if token:
            assert token not in result.out + result.err
        return result

    return call


@pytest.fixture(scope="session")
def run_folder(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run with held-out pairs. Do not write there."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "secret-place").mkdir()
    data = tiny.save_pairs(folder / "secret-place" / "pairs.jsonl", 24)
    return train(settings(llama, data, folder / "run", valid_fraction=0.2, eval_every=2)).output


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The least that is an adapter. Do not write there."""
    return save_adapter(tmp_path_factory.mktemp("least") / "adapter", 16)


def save_adapter(folder: Path, rows: int) -> Path:
    folder.mkdir()
    weights = {"model.layers.0.x.lora_a": mx.random.normal((rows, 100))}
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    config = {"num_layers": 1, "model": "a/b", "lora_parameters": {"rank": 100, "scale": 1.0}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def run(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on the tiny llama. Do not write there."""
    folder = tmp_path_factory.mktemp("run") / "run"
    adapted(llama, folder, ["all-linear"])
    return folder


@pytest.fixture(scope="session")
def peft(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It in PEFT's layout. Do not write there."""
    folder = tmp_path_factory.mktemp("peft") / "peft"
    export_peft(ExportConfig(adapter=run, to="peft", output=folder))
    return folder
