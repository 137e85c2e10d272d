"""The Modelfile that Ollama builds from, and the line that runs the files in llama.cpp.

Source: github.com/ollama/ollama, docs/modelfile.mdx and server/images.go (commit fb3076099).
"""

from pathlib import Path
from typing import Any, NamedTuple

from orpo_mlx.data.tokens.rendering.bounds import bound_transformers
from orpo_mlx.data.tokens.rendering.budget import begin_text
from orpo_mlx.interop.gguf.model import BASE, GGUF_ADAPTER, GGUF_MODEL
from orpo_mlx.interop.gguf.tokenizer import adds_bos, chat_template
from orpo_mlx.model.mlx_lm_api import unwrap_tokenizer


class ChatFormat(NamedTuple):
    """A chat template that is a prefix and a suffix around each role's text."""

    system: tuple[str, str]
    user: tuple[str, str]
    answer: tuple[str, str]


_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
CHAT_FORMATS = (
    ChatFormat(
        ("<|im_start|>system\n", "<|im_end|>\n"),
        ("<|im_start|>user\n", "<|im_end|>\n"),
        ("<|im_start|>assistant\n", "<|im_end|>\n"),
    ),
    ChatFormat(
        (_HEADER.format("system"), "<|eot_id|>"),
        (_HEADER.format("user"), "<|eot_id|>"),
        (_HEADER.format("assistant"), "<|eot_id|>"),
    ),
)


def render_modelfile(name: str, tokenizer: Any | None, *, fused: bool) -> str:
    """What `ollama create NAME -f Modelfile` reads, run in this folder.

    `tokenizer` is that of the model if the model is there; `name` is what the base is called.
    """
    lines = ["# ollama create NAME -f Modelfile"]
    if tokenizer is None:
        lines.append(
            f"# The base, {name}, as GGUF: put it next to this file as {BASE}, or write its "
            "name in Ollama's library here."
        )
    lines.append(f"FROM ./{GGUF_MODEL if fused else BASE}")
    if not fused:
        lines.append(f"ADAPTER ./{GGUF_ADAPTER}")
    lines += _template_lines(tokenizer) if tokenizer is not None else []
    return "\n".join(lines) + "\n"


def how_to_run(output: Path, files: list[str]) -> str:
    """The command for llama.cpp."""
    if GGUF_MODEL in files:
        return f"Run it: llama-cli -m {output / GGUF_MODEL}"
    base = output / BASE if BASE in files else "BASE.gguf"
    return f"Run it: llama-cli -m {base} --lora {output / GGUF_ADAPTER}"


def _template_lines(tokenizer: Any) -> list[str]:
    """The chat template as Go writes it, if it is in CHAT_FORMATS; else where Ollama finds it."""
    if chat_template(tokenizer) is None:
        return ["# The base has no chat template: Ollama passes the prompt on unchanged."]
    plain = unwrap_tokenizer(tokenizer)[0]
    chat_format = next(
        (candidate for candidate in CHAT_FORMATS if _renders(plain, candidate)), None
    )
    if chat_format is None:
        return ["# Ollama takes the chat template from the GGUF file."]
    system, user, answer = chat_format
    lines = [
        f'TEMPLATE """{{{{ if .System }}}}{system[0]}{{{{ .System }}}}{system[1]}{{{{ end }}}}'
        f"{{{{ if .Prompt }}}}{user[0]}{{{{ .Prompt }}}}{user[1]}{{{{ end }}}}"
        f'{answer[0]}{{{{ .Response }}}}{answer[1]}"""'
    ]
    if default := _default_system(plain, chat_format):
        lines.append(f'SYSTEM """{default}"""')
    return lines


def _renders(plain: Any, chat_format: ChatFormat) -> bool:
    """Whether the tokenizer's template writes a conversation just so."""
    turns = [("system", "Be Brief"), ("user", "Why?"), ("assistant", "So."), ("user", "What")]
    parts = {
        "system": chat_format.system,
        "user": chat_format.user,
        "assistant": chat_format.answer,
    }
    expected = "".join(text.join(parts[role]) for role, text in turns) + chat_format.answer[0]
    return _rendered(plain, turns) == expected


def _default_system(plain: Any, chat_format: ChatFormat) -> str | None:
    """The system message that the template adds by itself."""
    start, end = chat_format.system
    rendered = _rendered(plain, [("user", "U")])
    rest = "U".join(chat_format.user) + chat_format.answer[0]
    if rendered is None or not (rendered.startswith(start) and rendered.endswith(end + rest)):
        return None
    default = rendered[len(start) : -len(end + rest)]
    return None if '"""' in default else default


def _rendered(plain: Any, turns: list[tuple[str, str]]) -> str | None:
    """The text without the first token, if llama.cpp adds it; None if the template refuses."""
    from jinja2.exceptions import TemplateError

    messages = [{"role": role, "content": text} for role, text in turns]
    bound_transformers()
    begin_text()
    try:
        text: str = plain.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError):
        return None
    return text.removeprefix(plain.bos_token) if adds_bos(plain) else text
