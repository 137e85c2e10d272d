from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.cli.flags import _repeat_flags
from orpo_mlx.cli.settings import Layer, build_config, load_config_file
from orpo_mlx.config.train import TrainConfig
from orpo_mlx.errors import OrpoError
from tests.cli.conftest import Cli

NEEDED = {"model": "base", "data": ["pairs.jsonl"], "output": "run"}
NEEDED_FLAGS = ("--model", "base", "--data", "pairs.jsonl", "--output", "run")


@pytest.fixture
def config_of(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The settings with which `orpo-mlx train` would train."""

    def call(*arguments: object) -> TrainConfig:
        seen: list[TrainConfig] = []

        def ask(config: TrainConfig) -> TrainConfig:
            seen.append(config)
            raise OrpoError("enough")

        monkeypatch.setattr("orpo_mlx.cli.train.ask_if_exists", ask)
        assert cli("train", *NEEDED_FLAGS, *arguments).err == "Error: enough\n"
        return seen[0]

    return call


def build(**values: Any) -> TrainConfig:
    return build_config(TrainConfig, [Layer("", NEEDED | values)])


def fault(**values: Any) -> str:
    with pytest.raises(OrpoError) as error:
        build(**values)
    return str(error.value)


def test_without_flag_or_file_the_default_is_used(config_of: Any) -> None:
    assert config_of().rank == 16


def test_the_file_goes_before_the_default(config_of: Any, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("rank: 4\n")
    assert config_of("--config", "run.yaml").rank == 4


def test_a_flag_goes_before_the_file(config_of: Any, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("rank: 4\nrslora: true\ndata: [other.jsonl]\n")
    config = config_of("--config", "run.yaml", "--rank", 8, "--no-rslora")
    assert (config.rank, config.rslora, config.data) == (8, False, ["pairs.jsonl"])


def test_what_yaml_makes_of_on_and_1e_4_is_understood(config_of: Any, tmp_path: Path) -> None:
    text = "thinking: on\nlearning-rate: 1e-4\neval_pairs: all\ntarget_modules: q_proj, v_proj\n"
    (tmp_path / "run.yaml").write_text(text + "template_args: {level: 3}\n")
    config = config_of("--config", "run.yaml")
    assert (config.thinking, config.learning_rate, config.eval_pairs) == ("on", 1e-4, None)
    assert config.target_modules == ["q_proj", "v_proj"]
    assert config.template_args == {"level": 3}


def test_repeated_flags_make_lists(config_of: Any) -> None:
    config = config_of(
        "--data", "more.jsonl", "--template-args", "level=3", "--template-args", "tone=kind=er",
        "--target-modules", "q_proj,v_proj", "--target-modules", "lm_head",
    )  # fmt: skip
    assert config.data == ["pairs.jsonl", "more.jsonl"]
    assert config.template_args == {"level": 3, "tone": "kind=er"}
    assert config.target_modules == ["q_proj", "v_proj", "lm_head"]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"batch_size": "0"}, "--batch-size 0: must be at least 1."),
        ({"batch_size": "many"}, "--batch-size many: must be a whole number."),
        ({"dropout": "1"}, "--dropout 1: must be less than 1."),
        ({"alpha": "0"}, "--alpha 0: must be more than 0."),
        ({"seed": "4294967296"}, "--seed 4294967296: must be at most 4294967295."),
        # Of numbers that no float holds, and of those that no machine has room for.
        ({"rank": "1" + "0" * 400}, f"--rank 1{'0' * 99}...: must be at most 65536."),
        ({"rank": "99999999999"}, "--rank 99999999999: must be at most 65536."),
        ({"steps": "1" + "0" * 400}, f"--steps 1{'0' * 99}...: must be at most 4294967295."),
        ({"batch_size": "99999999"}, "--batch-size 99999999: must be at most 1048576."),
        ({"beta": "inf"}, "--beta inf: must be a finite number."),
        ({"beta": "x"}, "--beta x: must be a number."),
        ({"micro_batch_size": "0"}, "--micro-batch-size 0: must be at least 1."),
        ({"micro_batch_size": "x"}, "--micro-batch-size x: must be a whole number or auto."),
        ({"eval_pairs": "x"}, "--eval-pairs x: must be a whole number or all."),
        (
            {"schedule": "x"},
            "--schedule x: must be one of cosine, linear, inverse_sqrt or constant.",
        ),
        ({"rslora": "perhaps"}, "--rslora perhaps: must be true or false."),
        ({"revision": 5}, "--revision 5: must be text."),
        ({"output": 5}, "--output 5: must be a path."),
        ({"template_date": "x"}, "--template-date x: must be a date like 2026-01-31."),
        ({"template_args": ["x"]}, "--template-args x: must be key=value."),
        (
            {"template_args": ["x=[1"]},
            "--template-args x=[1: the value is not YAML; put quotes around it: key='\"value\"'.",
        ),
        ({"data": ["a", "./a"]}, "--data a,./a: names ./a twice."),
        (
            {"data": []},
            "--data is missing: name preference pairs, or with --sft-data rows of a prompt and "
            "one answer.",
        ),
        ({"model": ""}, "--model: must not be empty."),
        ({"target_modules": [","]}, "--target-modules: must not be empty."),
        (
            {"batch_size": 8, "micro_batch_size": 3},
            "--micro-batch-size 3: must divide --batch-size 8.",
        ),
        ({"steps": 1, "epochs": 1}, "--steps and --epochs: give one of them, not both."),
        (
            {"max_prompt_length": 2048},
            "--max-prompt-length 2048: must be under --max-seq-length 2048.",
        ),
    ],
)
def test_a_wrong_value_is_one_sentence(values: dict[str, Any], sentence: str) -> None:
    assert fault(**values) == sentence


def test_an_unknown_flag_is_answered_with_the_nearest(cli: Cli) -> None:
    result = cli("train", *NEEDED_FLAGS, "--learning-rat", "1e-4")
    assert result.status == 1
    assert result.err == "Error: --learning-rat: no such option. Did you mean --learning-rate?\n"


def test_an_unknown_key_is_answered_with_the_nearest(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("adapter-pat: x\nlearning_rat: 1e-4\n")
    assert cli("train", *NEEDED_FLAGS, "--config", "run.yaml").err == (
        "Error: Wrong options:\n"
        "  run.yaml: adapter_pat: no such option. Did you mean output?\n"
        "  run.yaml: learning_rat: no such option. Did you mean learning_rate?\n"
    )


def test_all_that_is_wrong_is_reported_at_once(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("rank: 0\nepoch: 2\n")
    result = cli(
        "train", "--config", "run.yaml", "--batch-size", "0", "--steps=1", "--epochs=1", "--jsn",
        "stray", "--data", "pairs.jsonl", "--output", "run", "word",
    )  # fmt: skip
    assert (result.status, result.out) == (1, "")
    assert result.err.splitlines() == [
        "Error: Wrong options:",
        "  --jsn: no such option. Did you mean --json?",
        "  word: belongs to no option; each value follows its flag (--data A --data B), "
        "in quotes if it holds spaces.",
        "  --model is missing: Base model: a folder (MLX or Hugging Face) or a Hub id.",
        "  --batch-size 0: must be at least 1.",
        "  run.yaml: rank 0: must be at least 1.",
        "  run.yaml: epoch: no such option. Did you mean epochs?",
        "  --steps and --epochs: give one of them, not both.",
    ]


def test_a_run_needs_pairs_or_sft_rows(cli: Cli) -> None:
    result = cli("train", "--model", "base", "--output", "run")
    assert (result.status, result.err) == (
        1,
        "Error: --data is missing: name preference pairs, or with --sft-data rows of a prompt and "
        "one answer.\n",
    )
    result = cli("train", "--model", "base", "--output", "run", "--sft-data", "gone.jsonl")
    assert result.err.startswith("Error: --sft-data gone.jsonl: no such file or folder (from ")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read (No such file or directory)."),
        (b"a: [1\nb: 2", "not YAML: expected ',' or ']', but got ':' in line 2."),
        (b"- rank", "must hold 'key: value' lines."),
        (b"rank", "must hold 'key: value' lines."),
        (b"batch-size: 4\nbatch_size: 8", "batch_size is given twice."),
        (b"\xff", "not YAML: 'utf-8' codec can't decode byte 0xff in position 0: invalid start"),
    ],
)
def test_a_file_that_holds_no_options_is_an_error(
    tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    file = tmp_path / "run.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(OrpoError) as error:
        load_config_file(file)
    assert str(error.value).startswith(f"--config {file}: {sentence}")


def test_an_empty_file_holds_no_options(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("# nothing yet\n")
    assert load_config_file(tmp_path / "run.yaml").values == {}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--data", "a", "b", "--steps", "3"], ["--data", "a", "--data", "b", "--steps", "3"]),
        (["--data=a", "b"], ["--data=a", "--data", "b"]),
        (["--steps", "3", "b"], ["--steps", "3", "b"]),
        (["--data", "a", "--quiet", "b"], ["--data", "a", "--quiet", "b"]),
        (["x", "--data", "-", "b"], ["x", "--data", "-", "--data", "b"]),
    ],
)
def test_a_repeatable_flag_takes_several_values(given: list[str], expected: list[str]) -> None:
    assert _repeat_flags(given, {"--data"}) == expected
