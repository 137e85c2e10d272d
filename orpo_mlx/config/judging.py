"""Options of sample, judge, loop and chat, each declared once."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, model_validator

from orpo_mlx.config.groups import BaseOptions, Options, ReadOptions, ReplaceOption, option
from orpo_mlx.config.parsers import Sources, file_name, folders, one_word, texts


class DrawOptions(BaseOptions):
    """How answers are drawn from a model."""

    max_tokens: int = option("Answer", 256, "Longest answer.", unit="tokens", ge=1)
    temperature: float = option(
        "Answer", 0.8, "Sampling temperature; 0 takes the likeliest token.", ge=0
    )
    seed: int = option("Answer", 0, "Seed of sampling.", ge=0, le=2**32 - 1)


class SampleConfig(ReplaceOption, ReadOptions, DrawOptions):
    """Options of `orpo-mlx sample`."""

    prompts: Sources = option(
        "Data",
        ...,
        "Prompts: a text file with one a line, JSON Lines with prompt or messages, or pairs of any "
        "row format; repeatable.",
        metavar="SOURCE",
        min_length=1,
    )
    limit: int | None = option("Data", None, "Only the first N prompts.", shown_default="all", ge=1)
    group_by: str | None = option(
        "Data",
        None,
        "Column whose value is kept with each answer: a verdict is shown by it, too.",
        metavar="COLUMN",
    )
    adapter: Annotated[list[str], BeforeValidator(texts)] = option(
        "Model",
        [],
        "Run folder to answer with, or base for the base alone; repeatable.",
        shown_default="base",
        metavar="FOLDER|base",
    )
    answers: int = option(
        "Answer", 4, "Answers of each model to a prompt.", flags=("-n", "--answers"), ge=1, le=64
    )
    batch_size: int = option("Run", 32, "Answers generated at once.", unit="answers", ge=1)
    output: Path = option("Run", Path("answers.jsonl"), "File to write.", metavar="FILE")
    resume: bool = option("Run", False, "Go on with the answers in --output.")

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        if self.overwrite and self.resume:
            raise ValueError("--overwrite and --resume: give one of them, not both")
        return self


class PageOptions(Options):
    """The page on which answers are judged, and what is measured next to a verdict."""

    judge: str = option("Run", "you", "Name of who judges; another can be typed on the page.")
    guidelines: Path | None = option(
        "Run", None, "Text (Markdown) that the page shows on top.", metavar="FILE"
    )
    host: str = option(
        "Run", "127.0.0.1", "Address that the page is served at; 0.0.0.0: for the network, too."
    )
    port: int = option("Run", 0, "Port of the page.", shown_default="a free one", ge=0, le=65_535)
    open: bool = option(
        "Run",
        True,
        "Open the page in a browser. --no-open only prints its link.",
        shown_default="on",
    )
    forget_text: Path | None = option(
        "Data",
        None,
        "Text, a paragraph after an empty line, on which a verdict measures what was forgotten.",
        shown_default="60 bundled paragraphs",
        metavar="FILE",
    )


class JudgeConfig(PageOptions):
    """Options of `orpo-mlx judge`."""

    answers: Annotated[list[Path], BeforeValidator(folders)] = option(
        "Data",
        ...,
        "Answers of sample, one file or several; or the folder of a session, to go on with it.",
        flags=("ANSWERS",),
        metavar="ANSWERS...",
        min_length=1,
    )
    purpose: Literal["pairs", "verdict"] = option(
        "Run",
        "pairs",
        "What votes are for. pairs: two unlike answers of one model, whose votes become pairs. "
        "verdict: an answer of each of two models, to see which one is preferred.",
        flags=("--for",),
    )
    per_prompt: int = option(
        "Run", 1, "For pairs: how often each prompt is asked, with other answers.", ge=1
    )
    output: Path | None = option(
        "Run",
        None,
        "Folder of the session.",
        shown_default="judged-pairs or judged-verdict next to the answers",
        metavar="FOLDER",
    )
    edits: Literal["keep", "drop"] = option(
        "Run", "keep", "What becomes of answers that a judge wrote: pairs, or nothing."
    )
    seed: int = option("Run", 0, "Seed of the order and the sides.", ge=0, le=2**32 - 1)
    result: bool = option(
        "Run", False, "Only write and print what the votes so far come to, without the page."
    )


class LoopConfig(PageOptions, DrawOptions):
    """Options of `orpo-mlx loop`; each is declared as a command of its stages has it."""

    name: Annotated[str, BeforeValidator(one_word), AfterValidator(file_name)] = option(
        "Run", ..., "Name of the loop: its folder is loops/NAME.", flags=("NAME",), metavar="NAME"
    )
    prompts: Sources = option(
        "Data",
        ...,
        "Prompts, as sample reads them. Each is for good on the side of pairs or of the verdict; "
        "others may be added between rounds; repeatable.",
        metavar="SOURCE",
        min_length=1,
    )
    group_by: str | None = option(
        "Data",
        None,
        "Column whose value is kept with each answer: a verdict is shown by it, too.",
        metavar="COLUMN",
    )
    pair_prompts: int = option(
        "Data", 40, "Prompts a round whose answers are judged for pairs.", ge=1
    )
    verdict_prompts: int = option(
        "Data", 40, "Prompts a round that the verdict is about: its n, fixed.", ge=1
    )
    answers: int = option(
        "Answer",
        4,
        "Answers to a prompt, of which two are judged for pairs.",
        flags=("-n", "--answers"),
        ge=2,
        le=64,
    )
    train_config: Path | None = option(
        "Optimizer",
        None,
        "YAML file with options of train, for every round.",
        shown_default="3 epochs of 4 pairs a step at 2e-4, else train's own",
        metavar="FILE.yaml",
    )
    continue_last: bool = option(
        "Run",
        False,
        "Train the adapter of the last round further, instead of a new one from the base.",
        flags=("--continue",),
    )
    against: Literal["before", "base"] = option(
        "Run",
        "before",
        "What the verdict compares the new adapter with: the model of the round before, or the "
        "base.",
    )
    edits: Literal["keep", "drop"] | None = option(
        "Run",
        None,
        "What becomes of answers that a judge wrote; where others have thoughts, keep trains with "
        "thinking off.",
        shown_default="asked once",
    )


class ChatConfig(DrawOptions):
    """Options of `orpo-mlx chat`."""

    adapter: Path | None = option("Model", None, "Run folder to talk with.", metavar="FOLDER")
    system: str | None = option(
        "Answer", None, "System message of the conversation; /system changes it."
    )
    output: Path | None = option(
        "Run",
        None,
        "Folder in which votes are kept, with the answers that they are about.",
        shown_default="chats/ and the adapter's name",
        metavar="FOLDER",
    )

    @property
    def folder(self) -> Path:
        """Where votes are kept."""
        return self.output or Path("chats") / (
            self.adapter.resolve().name if self.adapter else "base"
        )
