"""What stands beside a model's weights: tokenizer, chat template, generation settings, code."""

import shutil
from collections.abc import Collection
from pathlib import Path

REPORT = "conversion_report.json"
TEMPLATES = "additional_chat_templates"
WEIGHTS = {
    ".safetensors", ".bin", ".gguf", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".npz", ".ckpt",
}  # fmt: skip
# Written anew, or true of the source alone.
_OWN = {"config.json", "README.md", "hf_quant_config.json", "adapter_config.json", REPORT}


def copy_beside(source: Path, folder: Path, *, leave: Collection[str] = ()) -> None:
    """Copy into `folder` what is neither weights nor written anew, nor named in `leave`."""
    for file in sorted(source.iterdir()):
        own = file.name in _OWN or file.name.endswith(".index.json") or file.name.startswith(".")
        if file.is_file() and not (own or file.suffix in WEIGHTS or file.name in leave):
            shutil.copyfile(file, folder / file.name)
    if TEMPLATES not in leave and (templates := source / TEMPLATES).is_dir():
        shutil.copytree(templates, folder / TEMPLATES)
