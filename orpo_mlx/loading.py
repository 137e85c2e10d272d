"""From settings to what a run needs: base, encoder, encoded pairs."""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.nn as nn

from orpo_mlx import backend
from orpo_mlx.config.groups import BaseOptions, LengthOptions, TextOptions
from orpo_mlx.data.pairs.load import PreferencePair
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.text_file import read_text
from orpo_mlx.data.tokens.encode import encode_pairs, resolve_thinking
from orpo_mlx.data.tokens.encoder import EncodedPair, Encoder
from orpo_mlx.data.tokens.pair_facts import ids_beyond
from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.events import Callback, Notice, Progress, RowCounts
from orpo_mlx.model.base import Base, load_base, load_tokenizer_alone, vocabulary_rows
from orpo_mlx.model.mlx_lm_api import unwrap_tokenizer
from orpo_mlx.model.tokenizer import load_chat_tokenizer, tokenizer_fingerprint
from orpo_mlx.run_folder.folder import CONFIG
from orpo_mlx.run_folder.settings import load_run_config


class Template(NamedTuple):
    """How text is made of messages; kept in config.yaml since generation must use the same."""

    thinking: str  # auto, on, off
    arguments: dict[str, Any]
    date: dt.date
    name: str = ""  # for messages: the file that replaces the tokenizer's own


def open_base(options: BaseOptions, adapter: Path | None = None) -> Base:
    """The base that the options name; with the tokenizer of the adapter's folder if it has one."""
    text = _template_text(options.chat_template)
    slow = backend.prepare()
    backend.limit_memory()
    base = load_base(
        options.model,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
        keep_quantized=options.keep_quantized or not backend.is_cpu(),
        eos_token=options.eos_token,
        chat_template=text,
        adapter=adapter,
    )
    return base._replace(notices=[*base.notices, *([slow] if slow else [])])


def with_tokenizer_of(base: Base, options: BaseOptions, adapter: Path | None) -> Base:
    """A base that is loaded, with the tokenizer of a folder if it has one, else with its own."""
    tokenizer = load_chat_tokenizer(
        base.folder,
        base.config,
        adapter=adapter,
        eos_token=options.eos_token,
        chat_template=_template_text(options.chat_template),
        trust_remote_code=options.trust_remote_code,
    )
    return base._replace(tokenizer=tokenizer)


def open_tokenizer(options: TextOptions, model: str) -> Base:
    """A base without its weights: its tokenizer, end tokens and template."""
    backend.prepare()
    return load_tokenizer_alone(
        model,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
        eos_token=options.eos_token,
        chat_template=_template_text(options.chat_template),
    )


def _template_text(file: Path | None) -> str | None:
    """The text of --chat-template."""
    return read_text(file, "--chat-template") if file else None


def template_of(options: TextOptions, adapter: Path | None = None) -> Template:
    """The template's settings: the options', else those with which the adapter was trained."""
    stored = load_run_config(adapter) if adapter and (adapter / CONFIG).is_file() else {}
    given = options.model_fields_set
    thinking = options.thinking if "thinking" in given else stored.get("thinking", options.thinking)
    arguments = options.template_args or stored.get("template_args", {})
    kept = stored.get("template_date")
    try:
        stored_date = dt.date.fromisoformat(str(kept)) if kept else dt.date.today()
    except ValueError:
        raise OrpoError(
            f"{adapter}/{CONFIG}: template_date must be YEAR-MONTH-DAY, found {kept!r}."
        ) from None
    date = options.template_date or stored_date
    return Template(thinking, arguments, date, str(options.chat_template or ""))


def build_encoder(
    base: Base,
    template: Template,
    thinking: bool,
    lengths: LengthOptions | None = None,
) -> Encoder:
    """The encoder of a base's tokenizer."""
    lengths = lengths or LengthOptions()
    plain, argument = unwrap_tokenizer(base.tokenizer)
    return Encoder(
        tokenizer=plain,
        end_ids=frozenset(base.tokenizer.eos_token_ids),
        has_template=base.tokenizer.has_chat_template,
        thinking=thinking,
        arguments=template.arguments,
        date=template.date,
        max_seq_length=lengths.max_seq_length,
        max_prompt_length=lengths.max_prompt_length,
        template_name=template.name,
        thinking_argument=argument,
        fingerprint=tokenizer_fingerprint(plain),
    )


def check_ids(base: Base, pairs: Sequence[EncodedPair]) -> None:
    """Raise OrpoError for pairs with token ids that the base has no rows for.

    MLX does not check: it would read memory behind the matrix.
    """
    rows = vocabulary_rows(base.model)
    tokenizer, _ = unwrap_tokenizer(base.tokenizer)
    _refuse_beyond(str(base.folder), rows, ids_beyond(pairs, rows), tokenizer)


def check_prompt_ids(model: nn.Module, tokenizer: Any, ids: Sequence[int]) -> None:
    """The same of one prompt."""
    rows = vocabulary_rows(model)
    beyond = [("the prompt", i) for i in dict.fromkeys(ids) if i >= rows]
    _refuse_beyond("The base", rows, beyond, tokenizer)


def _refuse_beyond(name: str, rows: int, beyond: Sequence[tuple[str, int]], tokenizer: Any) -> None:
    if not beyond:
        return
    token_of = tokenizer.convert_ids_to_tokens
    raise OrpoError(
        str(
            collected(
                f"{name} has {rows:,} rows of embeddings, but its tokenizer gives ids beyond them:",
                [f"{location}: token {token_of(i)!r} has id {i:,}" for location, i in beyond],
            )
        )
        + "\nTake the tokenizer that belongs to this base, or a base whose embedding was resized "
        "for these tokens."
    )


def encode_all(
    encoder: Encoder,
    pairs: Sequence[PreferencePair],
    name: str,
    report: Callback,
    *,
    drop_bad: bool = False,
) -> list[EncodedPair]:
    """Encode with progress, and report what was cut or left out; bad rows too, if `drop_bad`."""

    def progress(done: int) -> None:
        if done % 200 == 0 or done == len(pairs):
            report(Progress(f"Tokenizing {name} pairs", done, len(pairs)))

    encoded, read_report = encode_pairs(pairs, encoder, progress, drop_bad=drop_bad)
    report_counts(name, read_report, report)
    return encoded


def report_counts(name: str, read_report: ReadReport, report: Callback) -> None:
    """Report what was cut or left out, by reason; raises OrpoError if no pair is left."""
    rows = read_report.counts()
    if rows:
        report(RowCounts(name, tuple(rows)))
    if not read_report.kept:
        reasons = "; ".join(f"{n:,} x {what}" for n, what in rows)
        raise OrpoError(f"No {name} {'row' if name == 'SFT' else 'pair'} is left: {reasons}.")


def thinking_for(template: Template, pairs: Sequence[PreferencePair], report: Callback) -> bool:
    """Whether reasoning is on for these pairs, with a warning if they hold both kinds."""
    on, sentence = resolve_thinking(template.thinking, pairs)
    if sentence:
        report(Notice(sentence, warning=True))
    return on
