"""Options of the commands that convert, fuse and exchange models and adapters."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, model_validator

from orpo_mlx.config.groups import HubOptions, ModelOption, Options, option
from orpo_mlx.config.parsers import (
    Sources,
    folder_and_share,
    number_or_word,
    one_word,
    path_as_text,
    texts,
)


class FolderOutput(Options):
    """A folder that is written completely or not at all, and replaced only when asked."""

    output: Path = option("Run", ..., "Folder to write.", metavar="FOLDER")
    overwrite: bool = option("Run", False, "Replace the folder in --output.")


# What mx.quantize accepts: mode -> group sizes and bits, the first of each by default.
QUANTIZATION: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": ((64, 32, 128), (4, 2, 3, 5, 6, 8)),
    "mxfp4": ((32,), (4,)),
    "nvfp4": ((16,), (4,)),
    "mxfp8": ((32,), (8,)),
}


class ConvertConfig(HubOptions, FolderOutput):
    """Options of `orpo-mlx convert`."""

    source: Annotated[str, BeforeValidator(path_as_text), BeforeValidator(one_word)] = option(
        "Model",
        ...,
        "Model to convert: a folder, a Hub id, or a llama .gguf file (F32, F16, Q4_0, Q4_1, Q8_0).",
        flags=("SOURCE",),
        metavar="SOURCE",
    )
    bits: Annotated[Literal[2, 3, 4, 5, 6, 8] | None, BeforeValidator(number_or_word)] = option(
        "Model", None, "Bits of a quantized weight.", shown_default="no quantization"
    )
    group_size: int | None = option(
        "Model",
        None,
        "Weights that share a scale: affine 32, 64 or 128; mxfp4 and mxfp8 32; nvfp4 16.",
        shown_default="64, or the mode's only one",
    )
    mode: Literal["affine", "mxfp4", "nvfp4", "mxfp8"] | None = option(
        "Model",
        None,
        "How a group is stored: integers with a scale and a bias, or small floats "
        "(mxfp4, nvfp4: 4 bits; mxfp8: 8).",
        shown_default="affine",
    )
    recipe: Literal["mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"] | None = option(
        "Model",
        None,
        "Instead of --bits, mlx-lm's mixed precision: few bits for most layers, more for the head "
        "and some value and down projections.",
    )
    dtype: Literal["float16", "bfloat16", "float32"] | None = option(
        "Model",
        None,
        "Data type of what is not quantized, and of scales.",
        shown_default="the config's, or as stored; float32 from GGUF",
    )
    dequantize: bool = option(
        "Model",
        False,
        "The other direction: an MLX folder as a plain Hugging Face one, which transformers loads.",
    )
    report: bool = option(
        "Run",
        False,
        "Measure what the conversion costs on a bundled text: perplexity, KL, likeliest tokens.",
    )

    @property
    def quantizes(self) -> bool:
        """Whether any weight is to be quantized; mxfp4, nvfp4 and mxfp8 name their bits."""
        return bool(self.bits or self.recipe or self.mode not in (None, "affine"))

    @model_validator(mode="after")
    def _known_together(self) -> Self:
        if problems := [*self._clashes(), *self._unknown_sizes()]:
            raise ValueError("; ".join(problems))
        return self

    def _clashes(self) -> list[str]:
        named = [n for n in ("bits", "group_size", "mode", "recipe") if getattr(self, n)]
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in named)
        problems = []
        if self.dequantize and named:
            problems.append(f"--dequantize and {flags}: give one of them, not both")
        elif named and not self.quantizes:
            problems.append(f"{flags}: needs --bits")
        if self.dequantize and self.report:
            problems.append("--report: --dequantize computes the same, there is nothing to measure")
        if self.recipe and self.bits:
            problems.append(f"--recipe {self.recipe} and --bits: the recipe names its bits")
        if self.recipe and self.mode not in (None, "affine"):
            problems.append(f"--recipe {self.recipe}: not with --mode {self.mode}, only affine")
        return problems

    def _unknown_sizes(self) -> list[str]:
        mode = self.mode or "affine"
        sizes, bits = QUANTIZATION[mode]
        problems = []
        if self.group_size is not None and self.group_size not in sizes:
            problems.append(
                f"--group-size {self.group_size}: not with --mode {mode} "
                f"(allowed: {', '.join(map(str, sorted(sizes)))})"
            )
        if self.bits is not None and self.bits not in bits:
            problems.append(f"--bits {self.bits}: not with --mode {mode} (allowed: {bits[0]})")
        return problems


class ExportConfig(HubOptions, FolderOutput):
    """Options of `orpo-mlx export`."""

    adapter: Annotated[Path, BeforeValidator(one_word)] = option(
        "Run", ..., "Adapter to export: a run folder.", flags=("ADAPTER",), metavar="ADAPTER"
    )
    to: Literal["peft", "gguf"] = option(
        "Run", ..., "Layout to write: PEFT's (transformers, vLLM), or GGUF (llama.cpp, Ollama)."
    )
    model: Annotated[str | None, BeforeValidator(path_as_text)] = option(
        "Model",
        None,
        "Base model of the adapter: a folder (MLX or Hugging Face) or a Hub id.",
        shown_default="the adapter's own",
    )
    base_id: str | None = option(
        "Model",
        None,
        "Name of the base in the adapter's config, where it is not --model: the id of the "
        "unquantized original.",
        metavar="ID",
    )
    fused: bool = option(
        "Model", False, "GGUF: the full model with the adapter in its weights, in one file."
    )
    with_base: bool = option(
        "Model", False, "GGUF: the base too, in a file of its own next to the adapter's."
    )
    outtype: Literal["f32", "f16", "q8_0"] | None = option(
        "Model",
        None,
        "GGUF: type of the model's weights; an adapter's own are f32, or f16 if asked.",
        shown_default="f16",
    )

    @model_validator(mode="after")
    def _known_to_layout(self) -> Self:
        problems = []
        if self.to == "peft":
            named = [n for n in ("fused", "with_base", "outtype") if getattr(self, n)]
            problems += [f"--{name.replace('_', '-')}: only with --to gguf" for name in named]
        elif self.fused and self.with_base:
            problems.append("--fused and --with-base: the fused model needs no base")
        elif self.outtype == "q8_0" and not (self.fused or self.with_base):
            problems.append("--outtype q8_0: an adapter is f32 or f16 (with --fused: q8_0 too)")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class FuseConfig(HubOptions, FolderOutput):
    """Options of `orpo-mlx fuse`."""

    adapter: Annotated[list[str], BeforeValidator(texts)] = option(
        "Run",
        ...,
        "Run folder to fuse; several, each with its share: RUN:0.5 adds half of what it changes; "
        "repeatable.",
        metavar="RUN",
        min_length=1,
    )
    model: Annotated[str | None, BeforeValidator(path_as_text)] = option(
        "Model",
        None,
        "Base model of the adapter: a folder (MLX or Hugging Face) or a Hub id.",
        shown_default="the adapter's own",
    )
    dequantize: bool = option(
        "Model", False, "Write plain weights, also those that the base has quantized."
    )
    dtype: Literal["float16", "bfloat16", "float32"] | None = option(
        "Model", None, "Type of plain weights.", shown_default="as stored"
    )
    data: Sources = option(
        "Data",
        [],
        "Held-out pairs that the fused model is compared on; repeatable.",
        shown_default="the run's own, else the bundled ones",
        metavar="SOURCE",
    )
    verify: bool = option(
        "Run",
        True,
        "Compare every written weight with base + adapter, and the models' answers where memory "
        "allows. --no-verify leaves it out.",
        shown_default="on",
    )

    @property
    def adapters(self) -> list[tuple[Path, float]]:
        """Every run folder and its share."""
        return [folder_and_share(text) for text in self.adapter]

    @model_validator(mode="after")
    def _shares_are_numbers(self) -> Self:
        _ = self.adapters
        return self


class ImportConfig(HubOptions, ModelOption, FolderOutput):
    """Options of `orpo-mlx import`."""

    adapter: Annotated[str, BeforeValidator(path_as_text), BeforeValidator(one_word)] = option(
        "Run", ..., "PEFT adapter: a folder or a Hub id.", flags=("ADAPTER",), metavar="ADAPTER"
    )
    adapter_revision: str | None = option(
        "Run", None, "Branch, tag or commit of an adapter on the Hub.", metavar="REVISION"
    )


class PushConfig(Options):
    """Options of `orpo-mlx push`."""

    model: Annotated[str | None, BeforeValidator(path_as_text)] = option(
        "Model",
        None,
        "Base model: a folder or a Hub id. Its license and answers are put into the card.",
        shown_default="the run's own",
    )

    folder: Annotated[Path, BeforeValidator(one_word)] = option(
        "Run",
        ...,
        "What to push: a run folder with its adapter, a model folder, or pairs (a .jsonl or "
        ".parquet file, or a folder of them).",
        flags=("FOLDER",),
        metavar="FOLDER",
    )
    repo: str = option(
        "Run", ..., "Repo to push to; it is created if it does not exist.", metavar="USER/NAME"
    )
    layout: Literal["mlx", "peft", "both"] = option(
        "Run",
        "mlx",
        "Layout of an adapter: mlx-lm's, PEFT's (vLLM, transformers), or PEFT's with mlx-lm's in "
        "the folder mlx.",
    )
    base_id: str | None = option(
        "Model",
        None,
        "What the base is called on the Hub, where the run was made from a folder.",
        metavar="ID",
    )
    private: bool = option("Run", False, "Create a private repo: the default.")
    public: bool = option("Run", False, "Create a public repo, or push to one.")
    revision: str | None = option(
        "Run", None, "Branch to push to; it is created if it does not exist.", metavar="BRANCH"
    )
    message: str | None = option(
        "Run", None, "Message of the commit.", shown_default="what is pushed"
    )
    tag: str | None = option("Run", None, "Tag to put on the commit.", metavar="NAME")
    dry_run: bool = option(
        "Run", False, "Show files, sizes and the card, without contacting the Hub."
    )
    data: Sources = option(
        "Data",
        [],
        "Held-out pairs to measure base and adapter on, for the card; repeatable.",
        metavar="SOURCE",
    )
    samples: int = option(
        "Answer",
        2,
        "Held-out prompts that the card shows answers to, before and after; 0: none.",
        ge=0,
        le=10,
    )
    max_tokens: int = option("Answer", 96, "Longest of these answers.", unit="tokens", ge=1)

    @model_validator(mode="after")
    def _one_visibility(self) -> Self:
        if self.private and self.public:
            raise ValueError("--private and --public: give one of them, not both")
        return self


class PullConfig(FolderOutput):
    """Options of `orpo-mlx pull`."""

    repo: Annotated[str, BeforeValidator(one_word)] = option(
        "Run", ..., "Adapter on the Hub.", flags=("USER/NAME",), metavar="USER/NAME"
    )
    revision: str | None = option("Run", None, "Branch, tag or commit of it.")
