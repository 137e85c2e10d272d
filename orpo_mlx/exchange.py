"""Options of the commands that bring models and adapters in and out, each declared once."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, model_validator

from orpo_mlx.options import MaybeModelOption, Options, option
from orpo_mlx.written import Sources, one_word


class FolderOutput(Options):
    """A folder that is written whole, and replaced only when asked."""

    output: Path = option("Run", ..., "Folder to write.", metavar="FOLDER")
    overwrite: bool = option("Run", False, "Replace the folder in --output.")


class PushConfig(MaybeModelOption):
    """Options of `orpo-mlx push`."""

    folder: Annotated[Path, BeforeValidator(one_word)] = option(
        "Run",
        ...,
        "What to push: a run folder with its adapter, a model folder, or pairs (a .jsonl or "
        ".parquet file, or a folder of them).",
        flags=("FOLDER",),
        metavar="FOLDER",
    )
    repo: str = option("Run", ..., "Repo to push to; it is made if it is not there.", metavar="ID")
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
    private: bool = option("Run", False, "Let nobody else see the repo: so it is anyway.")
    public: bool = option("Run", False, "Let everybody see the repo.")
    revision: str | None = option(
        "Run", None, "Branch to push to; it is made if it is not there.", metavar="BRANCH"
    )
    message: str | None = option(
        "Run", None, "Message of the commit.", shown_default="what is pushed"
    )
    tag: str | None = option("Run", None, "Tag to put on the commit.", metavar="NAME")
    dry_run: bool = option("Run", False, "Show files, sizes and the card; talk to nobody.")
    data: Sources = option(
        "Data", [], "Held-out pairs to measure base and adapter on, for the card; repeatable.",
        metavar="SOURCE",
    )  # fmt: skip
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
        "Run", ..., "Repo of the adapter on the Hub.", flags=("ID",), metavar="ID"
    )
    revision: str | None = option("Run", None, "Branch, tag or commit of it.")
