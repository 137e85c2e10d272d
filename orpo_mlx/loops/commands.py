"""The commands of a round, as a user would type them. No mlx."""

from pathlib import Path
from typing import NamedTuple

from orpo_mlx.config.groups import BaseOptions
from orpo_mlx.config.judging import DrawOptions, JudgeConfig, LoopConfig
from orpo_mlx.config.words import words_of
from orpo_mlx.judging.answers import BASE_NAME
from orpo_mlx.judging.session import SESSION
from orpo_mlx.judging.to_pairs import FEW_PAIRS, PAIRS
from orpo_mlx.loops.state import Edits, LoopState
from orpo_mlx.run_folder.checkpoints import last_checkpoint
from orpo_mlx.run_folder.folder import holds_run


class RoundPaths(NamedTuple):
    """The files of a round of a loop."""

    loop: Path
    number: int

    @property
    def folder(self) -> Path:
        return self.loop / f"round-{self.number}"

    @property
    def adapter(self) -> Path:
        """The run folder, whose name is what a verdict calls the model."""
        return self.loop / "adapters" / f"round-{self.number}"

    @property
    def pairs(self) -> Path:
        """What the votes for pairs came to; not there if that is nothing."""
        return self.session("pairs") / PAIRS

    def prompts(self, purpose: str) -> Path:
        return self.folder / f"{purpose}-prompts.jsonl"

    def answers(self, purpose: str) -> Path:
        return self.folder / f"{purpose}-answers.jsonl"

    def session(self, purpose: str) -> Path:
        return self.folder / purpose


class RoundCommands:
    """The arguments of each stage's command."""

    def __init__(self, config: LoopConfig, state: LoopState, loop: Path):
        self._config, self._state = config, state
        self._paths = RoundPaths(loop, state.current.number)
        self._trained = [RoundPaths(loop, r.number) for r in state.rounds[:-1] if r.adapter]

    def sample_pairs(self) -> list[str]:
        """Several answers of the newest model."""
        return self._sample("pairs", [self._before], self._config.answers)

    def judge_pairs(self) -> list[str]:
        return self._judge("pairs", self._state.edits or "keep")

    def train(self) -> list[str]:
        """From the base, or from the last adapter, on the pairs of all rounds."""
        config, output = self._config, self._paths.adapter
        numbers = range(1, self._paths.number + 1)
        pairs = (RoundPaths(self._paths.loop, number).pairs for number in numbers)
        words = ["train", *self._base_words()]
        words += [word for file in pairs if file.exists() for word in ("--data", str(file))]
        words += ["--config", str(config.train_config)] if config.train_config else FEW_PAIRS
        if self.continued:
            words += ["--adapter", str(self.continued)]
        words += ["--output", str(output)]
        if holds_run(output):  # what a stopped or killed stage left
            words.append("--resume" if last_checkpoint(output) else "--overwrite")
        return words

    @property
    def continued(self) -> Path | None:
        """The adapter that is trained further, None where training starts from the base."""
        goes_on = self._config.continue_last and self._trained
        return self._trained[-1].adapter if goes_on else None

    def sample_verdict(self) -> list[str]:
        """One answer of the new model, and of the one that it is compared with."""
        other = BASE_NAME if self._config.against == "base" else self._before
        return self._sample("verdict", [str(self._paths.adapter), other], 1)

    def judge_verdict(self) -> list[str]:
        return self._judge("verdict")

    @property
    def _before(self) -> str:
        """The model of the round before: an adapter's folder, or the base."""
        return str(self._trained[-1].adapter) if self._trained else BASE_NAME

    @property
    def _seed(self) -> int:
        return (self._config.seed + self._paths.number - 1) % 2**32

    def _sample(self, purpose: str, models: list[str], answers: int) -> list[str]:
        config, paths = self._config, self._paths
        words = ["sample", *self._base_words()]
        words += words_of(LoopConfig, "max_tokens", config.max_tokens)
        words += words_of(LoopConfig, "temperature", config.temperature)
        words += [word for model in models for word in ("--adapter", model)]
        words += ["--prompts", str(paths.prompts(purpose)), "-n", str(answers)]
        words += ["--group-by", "group"] if config.group_by else []
        words += ["--seed", str(self._seed), "--output", str(paths.answers(purpose))]
        return [*words, *(["--resume"] if paths.answers(purpose).exists() else [])]

    def _judge(self, purpose: str, edits: Edits = "keep") -> list[str]:
        config, session = self._config, self._paths.session(purpose)
        answers = self._paths.answers(purpose)
        has_copy = not answers.exists() and (session / SESSION).exists()
        words = ["judge", str(session if has_copy else answers), "--for", purpose]
        words += ["--output", str(session), "--seed", str(self._seed)]
        words += _given(JudgeConfig, config, ("judge", "guidelines", "host", "port", "open"))
        words += _given(JudgeConfig, config, ("forget_text",)) if purpose == "verdict" else []
        return [*words, *(["--edits", edits] if edits != "keep" else [])]

    def _base_words(self) -> list[str]:
        """The base and how its text is made; thinking is off once edits without it are kept."""
        off = {"thinking": "off"} if self._state.thinking_off else {}
        return _given(
            DrawOptions, self._config.model_copy(update=off), tuple(BaseOptions.model_fields)
        )


def _given(
    kind: type[DrawOptions | JudgeConfig], config: LoopConfig, names: tuple[str, ...]
) -> list[str]:
    """The words of those options that are not at their defaults."""
    return [
        word
        for name in names
        if (value := getattr(config, name)) != kind.model_fields[name].get_default()
        for word in words_of(kind, name, value)
    ]
