"""The Modelfile that Ollama builds from, and the line that runs the files in llama.cpp.

Source: github.com/ollama/ollama, docs/modelfile.mdx.
"""

from pathlib import Path
from typing import Any

from orpo_mlx.export.gguf_model import ADAPTER, BASE, MODEL
from orpo_mlx.export.gguf_tokenizer import chat_template


def render_modelfile(name: str, tokenizer: Any, *, fused: bool, base: bool) -> str:
    """What `ollama create NAME -f Modelfile` reads, run in this folder."""
    lines = ["# ollama create NAME -f Modelfile"]
    if fused:
        lines.append(f"FROM ./{MODEL}")
    else:
        if not base:
            lines.append(
                f"# The base, {name}, as GGUF: put it beside this file as {BASE}, or write its "
                "name in Ollama's library here."
            )
        lines += [f"FROM ./{BASE}", f"ADAPTER ./{ADAPTER}"]
    if chat_template(tokenizer) is None:
        lines.append("# The base has no chat template: Ollama hands the prompt on as it is.")
    else:
        lines.append("# Ollama takes the chat template from the GGUF file of the model.")
    return "\n".join(lines) + "\n"


def how_to_run(output: Path, files: list[str]) -> str:
    """The command for llama.cpp."""
    if MODEL in files:
        return f"Run it: llama-cli -m {output / MODEL}"
    base = output / BASE if BASE in files else "BASE.gguf"
    return f"Run it: llama-cli -m {base} --lora {output / ADAPTER}"
