"""Options of train, evaluate, generate and demo, each declared once.

The flags, the YAML keys, the messages and the rows of docs/cli.md are made from the classes in
this folder.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from orpo_mlx.config.groups import BaseOptions, DataOptions, RunOptions, option
from orpo_mlx.config.parsers import CommaList, SinkNames, Sources, all_is_none, number_or_word
from orpo_mlx.config.supervised import SupervisedOptions

# What a validation measures and that is better in one direction (training/metrics/best.py).
BestMetric = Literal[
    "eval_loss",
    "eval_nll_loss",
    "eval_log_odds_ratio",
    "eval_log_odds_chosen",
    "eval_rewards/accuracies",
    "eval_rewards/margins",
    "eval_rewards/chosen",
    "eval_logps/chosen",
]

# What a run's config.yaml has besides its options (run_folder/settings.py).
RUN_FACTS = {"rules", "adapter_step"}


class LearnOptions(DataOptions):
    """What is trained, on which pairs, and how: all of a run but its folder."""

    data: Sources = option(
        "Data",
        [],
        "Preference pairs: a file, a folder with train files, a glob, or a Hub id; SOURCE:2 takes "
        "each pair twice an epoch, SOURCE:0.5 half of them; repeatable.",
        metavar="SOURCE",
        shown_default="required without --sft-data",
    )
    sft_data: Sources = option(
        "Data",
        [],
        "Rows of a prompt and one answer, trained on by their likelihood alone, next to pairs or "
        "without; SOURCE:2 as for --data; repeatable.",
        metavar="SOURCE",
    )
    valid_data: Sources = option(
        "Data",
        [],
        "Held-out pairs; repeatable.",
        shown_default="the valid or test files of a --data folder, else --valid-fraction",
        metavar="SOURCE",
    )
    valid_fraction: float = option(
        "Data",
        0.05,
        "Share of the prompts that is held out with its pairs, where no held-out pairs are given.",
        ge=0,
        lt=1,
    )
    seed: int = option(
        "Run",
        0,
        "Seed of the held-out prompts, data order, adapter start and dropout.",
        ge=0,
        le=2**32 - 1,
    )
    steps: int | None = option(
        "Optimizer", None, "Optimizer steps, instead of --epochs.", ge=1, le=2**32 - 1
    )
    epochs: float | None = option(
        "Optimizer", None, "Passes over the data.", shown_default="1", gt=0
    )
    batch_size: int = option(
        "Optimizer", 8, "Pairs in one optimizer step.", unit="pairs", ge=1, le=2**20
    )
    micro_batch_size: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=1)], BeforeValidator(number_or_word)
    ] = option(
        "Optimizer",
        "auto",
        "Pairs computed at once; auto: as many as fit into 2048 computed tokens.",
        metavar="N|auto",
    )
    optimizer: Literal["adamw", "adafactor", "lion"] = option(
        "Optimizer",
        "adamw",
        "Rule of the update; adafactor and lion keep less memory a trained weight.",
    )
    learning_rate: float | None = option(
        "Optimizer",
        None,
        "Peak learning rate: about how far a step moves a weight.",
        shown_default="5e-5; 5e-6 with --fine-tune-type full; a fifth with --optimizer lion",
        gt=0,
    )
    schedule: Literal["cosine", "linear", "inverse_sqrt", "constant"] = option(
        "Optimizer", "cosine", "Shape of the learning rate's decay after warm-up."
    )
    warmup: float = option(
        "Optimizer", 0.1, "Warm-up: a share of the steps if under 1, else a number of steps.", ge=0
    )
    weight_decay: float = option(
        "Optimizer", 0.0, "Decoupled weight decay, of all weights but norms and biases.", ge=0
    )
    max_grad_norm: float = option(
        "Optimizer", 1.0, "Norm to which the gradient is clipped; 0: no clipping.", ge=0
    )
    grad_checkpoint: bool = option(
        "Run",
        False,
        "Keep little more than the input of each block and recompute the rest: less "
        "than half the memory, up to 1.5 times the time.",
    )
    plain: bool = option(
        "Run",
        False,
        "Run the model's own forward on prompt + response, for each response, instead of the fast "
        "path: for models that it gets wrong, and to compare.",
    )
    adapter: Path | None = option(
        "Adapter",
        None,
        "Adapter to start from, a run folder or what import wrote; the new one takes "
        "its layers, rank and scale.",
        metavar="FOLDER",
    )
    fine_tune_type: Literal["lora", "dora", "full"] = option(
        "Adapter", "lora", "What is trained; full: the weights of the chosen blocks themselves."
    )
    rank: int = option("Adapter", 16, "Rank of the adapter.", ge=1, le=2**16)
    alpha: float = option("Adapter", 32.0, "The adapter is scaled by alpha / rank.", gt=0)
    rslora: bool = option(
        "Adapter", False, "Scale by alpha / sqrt(rank) instead (rank-stabilized LoRA)."
    )
    dropout: float = option("Adapter", 0.0, "Dropout on the adapter's input.", ge=0, lt=1)
    num_layers: int = option("Adapter", -1, "Adapt the last N blocks; -1: all.", ge=-1)
    target_modules: CommaList = option(
        "Adapter",
        ["all-linear"],
        "Layers to adapt: names separated by commas (q_proj,v_proj,lm_head), or all-linear: every "
        "linear layer of the blocks, except MoE routers and those whose weights the model's code "
        "reads itself.",
        metavar="NAMES",
        min_length=1,
    )

    @model_validator(mode="before")
    @classmethod
    def _without_rules(cls, values: Any) -> Any:
        """Accept a run's config.yaml for a new run, which always follows the newest rules."""
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if name not in RUN_FACTS}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        wrong = []
        if not self.data and not self.sft_data:
            wrong.append(
                "--data is missing: name preference pairs, or with --sft-data rows of a prompt and "
                "one answer"
            )
        if self.steps is not None and self.epochs is not None:
            wrong.append("--steps and --epochs: give one of them, not both")
        if isinstance(self.micro_batch_size, int) and self.batch_size % self.micro_batch_size:
            wrong.append(
                f"--micro-batch-size {self.micro_batch_size}: must divide --batch-size "
                f"{self.batch_size}"
            )
        if self.max_prompt_length is not None and self.max_prompt_length >= self.max_seq_length:
            wrong.append(
                f"--max-prompt-length {self.max_prompt_length}: must be under --max-seq-length "
                f"{self.max_seq_length}"
            )
        wrong += self._contradictions()
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    def _contradictions(self) -> list[str]:
        """Further options that a command may not have together, a sentence each."""
        return []

    @property
    def peak_learning_rate(self) -> float:
        """The given rate, or the usual one for what is trained, and how (docs/defaults.md)."""
        adapter, full = (1e-5, 1e-6) if self.optimizer == "lion" else (5e-5, 5e-6)
        return self.learning_rate or (full if self.fine_tune_type == "full" else adapter)

    @property
    def scale(self) -> float:
        """The factor of the adapter's product: alpha / rank, or alpha / sqrt(rank) for rsLoRA."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


class TrainConfig(LearnOptions, SupervisedOptions, RunOptions):
    """Options of `orpo-mlx train`."""

    eval_every: int = option(
        "Run",
        50,
        "Validate before and after training, and every N steps; 0: not in between.",
        unit="steps",
        ge=0,
    )
    eval_pairs: Annotated[int | None, BeforeValidator(all_is_none)] = option(
        "Run",
        64,
        "Validate on the first N held-out pairs, or on all.",
        metavar="N|all",
        unit="pairs",
        ge=1,
    )
    save_every: int = option(
        "Run",
        100,
        "Write a checkpoint every N steps; 0: only at the end, when stopped, and at a validation "
        "that is the best so far.",
        unit="steps",
        ge=0,
    )
    keep_checkpoints: Annotated[int | None, BeforeValidator(all_is_none)] = option(
        "Run",
        3,
        "Keep the last N checkpoints, or all; older ones are removed once a new one is whole.",
        metavar="N|all",
        unit="checkpoints",
        ge=1,
    )
    best_metric: BestMetric = option(
        "Run",
        "eval_loss",
        "What a validation is judged by: the losses are better when lower, the others when higher.",
    )
    early_stop: int | None = option(
        "Run",
        None,
        "End after N validations without a better one, with the adapter of the best.",
        unit="validations",
        ge=1,
    )
    final: Literal["last", "best"] = option(
        "Run", "last", "Which step's adapter a run leaves: the last, or the best validation's."
    )
    on_nan: Literal["stop", "skip"] = option(
        "Run",
        "stop",
        "Where loss or gradient is NaN or infinite: stop, or leave that step's update out; five in "
        "a row end the run.",
    )
    sample_prompts: Path | None = option(
        "Run",
        None,
        "Answer these prompts at each validation, into samples.jsonl: a text file with one a line, "
        "or .jsonl with prompt or messages.",
        metavar="FILE",
    )
    log_to: SinkNames = option(
        "Run",
        [],
        "Send the metrics to tensorboard, wandb or trackio, too; repeatable.",
        metavar="NAME",
    )

    def _contradictions(self) -> list[str]:
        wrong = []
        if self.overwrite and self.resume:
            wrong.append("--overwrite and --resume: give one of them, not both")
        if self.cooldown and self.segment_steps is None:
            wrong.append("--cooldown: is the pause between segments, give --segment-steps too")
        if self.early_stop is not None and not self.eval_every:
            wrong.append("--early-stop: --eval-every 0 leaves no validations to stop at")
        if not self.beta and self.best_metric in ("eval_rewards/margins", "eval_rewards/chosen"):
            wrong.append(f"--best-metric {self.best_metric}: is always 0 with --beta 0")
        return wrong


class EvaluateConfig(DataOptions):
    """Options of `orpo-mlx evaluate`."""

    data: Sources = option(
        "Data",
        ...,
        "Held-out pairs: a file, a folder with test or valid files, a glob, or a Hub id; "
        "repeatable.",
        metavar="SOURCE",
        min_length=1,
    )
    adapter: Path | None = option(
        "Model", None, "Run folder to compare with the base.", metavar="FOLDER"
    )
    pairs: int | None = option("Data", None, "Only the first N pairs.", shown_default="all", ge=1)
    batch_size: int = option("Run", 4, "Pairs computed at once.", unit="pairs", ge=1)


class GenerateConfig(BaseOptions):
    """Options of `orpo-mlx generate`."""

    adapter: Path | None = option("Model", None, "Run folder to apply.", metavar="FOLDER")
    prompt: str = option("Answer", ..., "What the user says; - reads it from standard input.")
    system: str | None = option("Answer", None, "System message before it.")
    max_tokens: int = option("Answer", 256, "Longest answer.", unit="tokens", ge=1)
    temperature: float = option(
        "Answer", 0.0, "Sampling temperature; 0 takes the likeliest token.", ge=0
    )
    seed: int = option("Answer", 0, "Seed of sampling.", ge=0, le=2**32 - 1)


class DemoConfig(RunOptions):
    """Options of `orpo-mlx demo`."""

    output: Path = option(
        "Run",
        Path("adapters/demo"),
        "Run folder to write.",
        flags=("--output", "--adapter-path"),
        metavar="FOLDER",
    )
    base_wheel: Path | None = option(
        "Model",
        None,
        "Wheel of the demo base that was downloaded by hand.",
        metavar="FILE",
    )
    verbose: bool = option("Run", False, "Print the demo's settings.")
