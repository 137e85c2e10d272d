"""What stands beside a model's weights: tokenizer, chat template, generation settings, code."""

import shutil
from pathlib import Path

from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS

REPORT = "conversion_report.json"
# Written anew, or true of the source alone.
_OWN = {"config.json", "hf_quant_config.json", "adapter_config.json", REPORT}


def copy_beside(source: Path, folder: Path) -> None:
    """Copy into `folder` what is not written anew."""
    for pattern in DEFAULT_ALLOW_PATTERNS:
        for file in source.glob(pattern):
            kept = file.name not in _OWN and not file.name.endswith(".index.json")
            if kept and file.suffix != ".safetensors":
                shutil.copyfile(file, folder / file.name)
    if (templates := source / "additional_chat_templates").is_dir():
        shutil.copytree(templates, folder / templates.name)
