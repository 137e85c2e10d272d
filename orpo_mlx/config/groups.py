"""Options that several commands share, in groups, and how an option is declared."""

import datetime as dt
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from orpo_mlx.config.parsers import ColumnMap, KeyValues, Sources, on_off, path_as_text
from orpo_mlx.data.pairs.format_names import RowFormatName
from orpo_mlx.files import user_path

# The order of the groups of options in `--help` and docs/cli.md.
SECTIONS = ("Model", "Data", "Answer", "Run", "Objective", "Optimizer", "Adapter", "Text")


def option(
    section: str,
    default: Any,
    help: str,
    *,
    unit: str = "",
    flags: tuple[str, ...] = (),
    metavar: str = "",
    shown_default: str = "",
    **bounds: Any,
) -> Any:
    """A pydantic field with what the command line needs.

    `flags` replaces the flag's own name, and is a bare word for what is given without a flag;
    `shown_default` describes a default that is computed.
    """
    extra: dict[str, Any] = {
        "section": section,
        "unit": unit,
        "flags": list(flags),
        "metavar": metavar,
        "shown_default": shown_default,
    }
    return Field(default, description=help, json_schema_extra=extra, **bounds)


class Options(BaseModel):
    """What all commands share: strict keys, and messages for people."""

    # Built on first use: a command's --help builds no validator, its own or another's.
    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), defer_build=True, allow_inf_nan=False
    )

    @field_validator("*", mode="after")
    @classmethod
    def _expand_home(cls, value: Any) -> Any:
        """`~` as a shell reads it: a file of settings has none."""
        return user_path(value) if isinstance(value, Path) else value


class ModelOption(Options):
    """A base model that is needed."""

    model: Annotated[str, BeforeValidator(path_as_text)] = option(
        "Model", ..., "Base model: a folder (MLX or Hugging Face) or a Hub id."
    )


class MaybeModelOption(Options):
    """An optional base model, with which more can be shown."""

    model: Annotated[str | None, BeforeValidator(path_as_text)] = option(
        "Model",
        None,
        "Base model, a folder or a Hub id: its tokenizer and template make the tokens.",
    )


# Leave to run a model's own code: given with a call, never by a file, which may be another's.
LEAVE = "trust_remote_code"


class HubOptions(Options):
    """How a model on the Hub is fetched, and whether its own code is run."""

    revision: str | None = option("Model", None, "Branch, tag or commit of a Hub id.")
    trust_remote_code: bool = option(
        "Model", False, "Run Python code that comes with the model or its tokenizer."
    )


class TextOptions(HubOptions):
    """How the text of a base model is made."""

    eos_token: str | None = option(
        "Text",
        None,
        "The token that ends a turn, if it is not the tokenizer's own end token "
        "(Qwen base models with ChatML: <|im_end|>).",
        metavar="TOKEN",
    )
    chat_template: Path | None = option(
        "Text", None, "Jinja file that replaces the tokenizer's chat template.", metavar="FILE"
    )
    template_args: KeyValues = option(
        "Text", {}, "Argument for the chat template; repeatable.", metavar="KEY=VALUE"
    )
    thinking: Annotated[Literal["auto", "on", "off"], BeforeValidator(on_off)] = option(
        "Text", "auto", "Reasoning in the chat template; auto: on if a response in the data has it."
    )
    template_date: dt.date | None = option(
        "Text",
        None,
        "The date that chat templates take for today.",
        shown_default="today, or the adapter's own",
        metavar="YYYY-MM-DD",
    )


class BaseOptions(TextOptions, ModelOption):
    """The base model, and how its text is made."""

    keep_quantized: bool = option(
        "Model",
        False,
        "On the CPU too, compute with quantized weights as they are, which takes less memory and "
        "20 times as long as float32. GPUs always do.",
    )


class ReadOptions(Options):
    """How sources are found and their rows are read."""

    format: Literal["auto", RowFormatName] = option(
        "Data", "auto", "Row format (docs/data.md); auto: recognized from the first 1,000 rows."
    )
    columns: ColumnMap = option(
        "Data",
        {},
        "What your columns are called: prompt=question,chosen=good,rejected=bad.",
        metavar="NAME=COLUMN,...",
    )
    split: str | None = option(
        "Data",
        None,
        "Split of Hub and saved data sets.",
        shown_default="train_prefs or train; to evaluate, test_prefs or test",
        metavar="NAME",
    )
    subset: str | None = option("Data", None, "Subset of a Hub data set.", metavar="NAME")
    data_revision: str | None = option(
        "Data", None, "Branch, tag or commit of a Hub data set.", metavar="REVISION"
    )
    higher_is_better: bool = option(
        "Data", False, "Of scored answers, the one with the higher score is chosen."
    )
    lower_is_better: bool = option(
        "Data", False, "Of scored answers, the one with the lower score is chosen."
    )
    min_margin: float | None = option(
        "Data",
        None,
        "Of several scored answers, make every pair whose scores are at least this far apart.",
        shown_default="the best against the worst",
        ge=0,
    )
    bad_rows: Literal["stop", "drop"] = option(
        "Data", "stop", "Rows that cannot be read: name them all and stop, or leave them out."
    )

    @model_validator(mode="after")
    def _one_direction(self) -> Self:
        if self.higher_is_better and self.lower_is_better:
            raise ValueError("--higher-is-better and --lower-is-better: give one of them, not both")
        return self

    @property
    def better(self) -> bool | None:
        """Whether the greater score is chosen; None: as the column says."""
        return self.higher_is_better if self.higher_is_better or self.lower_is_better else None


class EncodeOptions(Options):
    """How many processes make token ids of pairs."""

    num_proc: int | None = option(
        "Data",
        None,
        "Processes that tokenize.",
        shown_default="one per core for thousands of pairs, else none",
        ge=1,
    )


class LengthOptions(Options):
    """How pairs are cut to length."""

    max_seq_length: int = option(
        "Text",
        2048,
        "Longest prompt + response. Longer ones lose the front of the prompt, then the end "
        "of the responses.",
        unit="tokens",
        ge=8,
    )
    max_prompt_length: int | None = option(
        "Text",
        None,
        "What a prompt that is cut keeps before its responses are cut.",
        shown_default="half of --max-seq-length",
        unit="tokens",
        ge=1,
    )


class DataOptions(LengthOptions, EncodeOptions, ReadOptions, BaseOptions):
    """What a model is trained or measured on, and the loss on it."""

    beta: float = option(
        "Objective", 0.1, "Weight of the odds-ratio loss (the paper's lambda); 0 is SFT.", ge=0
    )
    nll_on: Literal["response", "prompt+response"] = option(
        "Objective",
        "response",
        "Tokens of the likelihood part of the loss; TRL uses prompt+response.",
    )


class RunOptions(Options):
    """The run folder, and what to do with one that exists."""

    output: Path = option(
        "Run", ..., "Run folder to write.", flags=("--output", "--adapter-path"), metavar="FOLDER"
    )
    overwrite: bool = option("Run", False, "Replace the run in --output.")
    resume: bool = option("Run", False, "Continue from the last checkpoint in --output.")


class SourceArgument(Options):
    """What every `orpo-mlx data` command is about."""

    data: Sources = option(
        "Data",
        ...,
        "Preference pairs: files, folders, globs or Hub ids.",
        flags=("SOURCE",),
        metavar="SOURCE...",
        min_length=1,
    )


class SourceOptions(ReadOptions, SourceArgument):
    """What every `orpo-mlx data` command reads, and how."""


class ReplaceOption(Options):
    """No file is replaced unasked."""

    overwrite: bool = option("Run", False, "Replace the files that are written.")


class ShownOptions(SourceOptions, LengthOptions, TextOptions, MaybeModelOption):
    """Pairs as they are, or as a model sees them."""
