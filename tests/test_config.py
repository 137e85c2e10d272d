import pytest
from pydantic import ValidationError

from orpo_mlx.cli.flags import option_row
from orpo_mlx.config.data import (
    DataCheckConfig,
    DataConvertConfig,
    DataPreviewConfig,
    DataSplitConfig,
    DataStatsConfig,
)
from orpo_mlx.config.groups import SECTIONS, Options
from orpo_mlx.config.interop import (
    ConvertConfig,
    ExportConfig,
    FuseConfig,
    ImportConfig,
    PullConfig,
    PushConfig,
)
from orpo_mlx.config.judging import ChatConfig, JudgeConfig, LoopConfig, SampleConfig
from orpo_mlx.config.sweep import SweepConfig
from orpo_mlx.config.train import DemoConfig, EvaluateConfig, GenerateConfig, TrainConfig

RUNS = (TrainConfig, EvaluateConfig, GenerateConfig, DemoConfig)
DATA = (
    DataPreviewConfig,
    DataCheckConfig,
    DataSplitConfig,
    DataConvertConfig,
    DataStatsConfig,
)
EXCHANGE = (ConvertConfig, FuseConfig, ExportConfig, ImportConfig, PushConfig, PullConfig)
KINDS = (*RUNS, *DATA, *EXCHANGE, SweepConfig, SampleConfig, JudgeConfig, LoopConfig, ChatConfig)
NEEDED = {"model": "base", "data": ["pairs.jsonl"], "output": "run"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_has_a_section_and_a_help_that_is_a_sentence(kind: type[Options]) -> None:
    for name, field in kind.model_fields.items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict)
        assert extra["section"] in SECTIONS, name
        assert field.description and field.description[0].isupper(), name
        assert field.description.endswith("."), name


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_options_share_a_flag(kind: type[Options]) -> None:
    flags = [flag for name in kind.model_fields for flag in option_row(kind, name).flags]
    assert len(flags) == len(set(flags))


def test_a_flag_has_one_help_text_wherever_it_means_the_same() -> None:
    same = {
        RUNS: ("model", "thinking", "output", "overwrite", "beta", "max_seq_length"),
        DATA: ("model", "thinking", "overwrite", "max_seq_length", "data"),
    }
    for kinds, names in same.items():
        for name in names:
            texts = {k.model_fields[name].description for k in kinds if name in k.model_fields}
            assert len(texts) == 1, name


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValidationError, match="learning_rat"):
        TrainConfig(**NEEDED, learning_rat=1e-4)


def test_the_learning_rate_follows_what_is_trained() -> None:
    assert TrainConfig(**NEEDED).peak_learning_rate == 5e-5
    assert TrainConfig(**NEEDED, fine_tune_type="full").peak_learning_rate == 5e-6
    assert TrainConfig(**NEEDED, fine_tune_type="full", learning_rate=1e-3).peak_learning_rate == (
        1e-3
    )


def test_the_scale_is_alpha_by_rank_or_by_its_root() -> None:
    assert TrainConfig(**NEEDED, rank=16, alpha=32).scale == 2.0
    assert TrainConfig(**NEEDED, rank=16, alpha=32, rslora=True).scale == 8.0


def test_a_dumped_config_says_the_same_again() -> None:
    config = TrainConfig(
        **NEEDED, thinking="on", template_date="2026-01-31", eval_pairs="all", micro_batch_size=4
    )
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config


def test_columns_are_named_in_one_text_or_in_several() -> None:
    wanted = {"prompt": "q", "chosen": "a", "rejected": "b"}
    for written in (
        ["prompt=q,chosen=a,rejected=b"],
        ["prompt=q", "chosen=a", "rejected=b"],
        ["prompt=q,chosen=a", "rejected=b"],
        wanted,
    ):
        config = DataCheckConfig.model_validate({"data": ["x"], "columns": written})
        assert config.columns == wanted


@pytest.mark.parametrize("written", ["²", "--4", "four", "4.5"])
def test_what_is_neither_a_number_nor_the_word_is_refused_in_our_words(written: str) -> None:
    given = {"model": "m", "data": ["d"], "output": "o", "micro_batch_size": written}
    with pytest.raises(ValidationError) as caught:
        TrainConfig.model_validate(given)
    assert "base 10" not in str(caught.value)
