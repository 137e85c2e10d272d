"""Each name of transformers, the Hub, datasets and PEFT that we lean on, as in test_upstream.py."""

import importlib
import inspect

import pytest

from tests.test_upstream import BASES, fault


def test_transformers_configs_show_whether_they_tie() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    ties = {kind: CONFIG_MAPPING[kind].tie_word_embeddings for kind in ("llama", "gemma2")}
    assert ties == {"llama": False, "gemma2": True}, f"It breaks heads in {BASES}."


def test_transformers_compiles_a_template_as_we_render_it() -> None:
    import jinja2
    from transformers import PreTrainedTokenizerBase
    from transformers.utils import chat_template_utils

    breaks = "It breaks the fast rendering of prompts (data/tokens/rendering/template.py)."
    compiled = chat_template_utils._compile_jinja_template("{{ messages[0].content }}{{ n.real }}")
    assert isinstance(compiled, jinja2.Template), breaks
    bounds = "It breaks the bounds on chat templates (data/tokens/rendering/bounds.py)."
    empty = chat_template_utils._cached_compile_jinja_template("")
    assert type(empty.environment).__name__ == "ImmutableSandboxedEnvironment", bounds
    names = empty.root_render_func.__globals__
    assert {"str_join", "markup_join", "environment"} <= names.keys(), bounds
    asked: list[str] = []
    judge = compiled.environment.is_safe_attribute
    assert not fault(judge, "obj attr value", ""), breaks
    compiled.environment.is_safe_attribute = lambda of, name, value: (  # type: ignore[method-assign]
        asked.append(name) or judge(of, name, value)
    )
    context = compiled.new_context({"messages": [{"content": "a"}], "n": 1}, shared=True)
    assert "".join(compiled.root_render_func(context)) == "a1", breaks
    assert asked == ["real"], f"The sandbox asks {asked} of its own attribute. {breaks}"
    assert dict(compiled.globals), breaks
    assert hasattr(PreTrainedTokenizerBase, "apply_chat_template"), breaks


def test_transformers_names_its_classes() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get("llama") == "LlamaForCausalLM", (
        "It breaks PEFT's names and converted configs (interop/checkpoint/module_map.py)."
    )


def test_the_hub_keeps_hashes_and_loggers_where_we_look() -> None:
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import filter_repo_objects
    from huggingface_hub.utils import logging as hub_logging

    operation = CommitOperationAdd("a", b"text")
    breaks = "It breaks push: every try would hash all files again (interop/hub/push.py)."
    assert "upload_info" in vars(operation), breaks
    library = hub_logging.get_logger().name
    assert library == "huggingface_hub", "It breaks forwarded notices (interop/hub/client.py)."
    tries = importlib.import_module("huggingface_hub.utils._http").logger.name
    assert tries == "huggingface_hub.utils._http", "Every try is printed (hub_sets.py)."
    assert list(filter_repo_objects(["a", "b"], allow_patterns=["b"])) == ["b"], "It breaks pull."
    assert not fault(HfHubHTTPError, "message", "response server_message"), "Hub errors break."


def test_datasets_says_what_came_from_its_cache() -> None:
    import datasets
    from datasets import exceptions
    from datasets.packaged_modules.cache.cache import Cache

    breaks = "It breaks data sets of the Hub (data/reading/hub_sets.py)."
    assert Cache.__module__.startswith("datasets.packaged_modules.cache."), breaks
    assert hasattr(exceptions, "DatasetGenerationError"), breaks
    assert hasattr(exceptions, "DatasetNotFoundError"), breaks
    assert not fault(datasets.load_dataset_builder, "path name", "revision"), breaks
    assert hasattr(datasets.Dataset, "cache_files"), breaks


@pytest.mark.parity
def test_peft_knows_the_settings_that_we_read() -> None:
    from peft import LoraConfig

    from orpo_mlx.interop.peft.config import UNKNOWN

    read = {
        "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "bias",
        "target_modules", "target_parameters", "modules_to_save", "init_lora_weights",
    }  # fmt: skip
    lost = (read | set(UNKNOWN)) - inspect.signature(LoraConfig).parameters.keys()
    assert not lost, f"LoraConfig has no {sorted(lost)}. It breaks orpo-mlx import and export."
