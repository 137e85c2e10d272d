"""What makes a new folder does not replace one in which a run is under way."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.config.interop import ConvertConfig, ExportConfig, FuseConfig, ImportConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.interop.convert.to_mlx import convert
from orpo_mlx.interop.fuse.merge import fuse
from orpo_mlx.interop.gguf.adapter import export_gguf
from orpo_mlx.interop.peft.exporter import export_peft
from orpo_mlx.interop.peft.importer import import_peft
from orpo_mlx.run_folder.lock import locked

GIVEN: dict[str, Any] = {"adapter": "adapter", "model": "model", "overwrite": True}


@pytest.mark.parametrize(
    ("function", "config"),
    [
        (fuse, lambda output: FuseConfig(**GIVEN | {"adapter": ["adapter"]}, output=output)),
        (export_peft, lambda output: ExportConfig(**GIVEN, to="peft", output=output)),
        (export_gguf, lambda output: ExportConfig(**GIVEN, to="gguf", output=output)),
        (import_peft, lambda output: ImportConfig(**GIVEN, output=output)),
        (convert, lambda output: ConvertConfig(source="model", overwrite=True, output=output)),
    ],
)
def test_a_folder_of_a_run_under_way_is_not_replaced(
    tmp_path: Path, function: Callable[[Any, Any], Any], config: Callable[[Path], Any]
) -> None:
    output = tmp_path / "run"
    with locked(output, lambda event: None):
        (output / "config.yaml").touch()
        with pytest.raises(OrpoError, match=f"{output} is in use by process {os.getpid()} on "):
            function(config(output), lambda event: None)
    with pytest.raises(OrpoError) as caught:
        function(config(output), lambda event: None)
    assert "is in use" not in str(caught.value)
