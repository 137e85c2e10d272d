"""Public data sets: rows with their columns and nesting, and the pairs that these make."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from orpo_mlx.data.formats import Message, PreferencePair, Reading, iter_pairs
from orpo_mlx.data.sources import Problem, find_sources
from tests.data.rows import assistant, system, user

FIXTURES = Path(__file__).parent / "fixtures"
LIGHT, GOOD, BAD = (
    "How do I restart the router?", "Hold the button until the light is green.", "Try it later.",
)  # fmt: skip
BILL, HERE, UNKNOWN = (
    "Where is my bill?", "It is under Orders, then Bills.", "I do not know."
)  # fmt: skip
DESK = system("You are a help desk.")
ASKED = [user("Hello"), assistant("What is it?"), user(BILL)]
TIE = "answers that are equally good (a tie)"
TOOL = {
    "name": "find_bill",
    "description": "Find a bill.",
    "parameters": {
        "type": "object", "properties": {"month": {"type": "string"}}, "required": ["month"],
    },
}  # fmt: skip


def light(place: str = "1", prompt: str | list[Message] = LIGHT, **labels: str) -> PreferencePair:
    return PreferencePair(prompt, assistant(GOOD), assistant(BAD), place, labels=labels)


def bill(place: str = "2", prompt: str | list[Message] = BILL, **labels: str) -> PreferencePair:
    return PreferencePair(prompt, assistant(HERE), assistant(UNKNOWN), place, labels=labels)


def month(name: str) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "find_bill", "arguments": {"month": name}}}]


def chatml(prompt: str) -> str:
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def raw(pair: PreferencePair, end: str) -> PreferencePair:
    chosen, rejected = (assistant(m["content"] + end) for m in (pair.chosen, pair.rejected))
    return pair._replace(
        prompt=chatml(str(pair.prompt)), chosen=chosen, rejected=rejected, raw=True
    )


class Read(NamedTuple):
    """What a fixture is read as."""

    sentence: str
    pairs: list[PreferencePair]
    drops: dict[str, int] = {}  # noqa: RUF012


SETS = {
    "alpaca_farm": Read(
        'A/B, "output_1" against "output_2" by "preference" (names one of them, or a tie); '
        'the prompt is "instruction" and "input"',
        [light(), bill(prompt=f"Answer the customer.\n{BILL}")],
    ),
    "axolotl_chat_template": Read(
        'conversational, explicit prompt; the prompt is "messages"',
        [light(prompt=[user(LIGHT)]), bill(prompt=[DESK, *ASKED])],
    ),
    "chatbot_arena": Read(
        'A/B, "conversation_a" against "conversation_b" by "winner" (names one of them, or a tie)',
        [
            make(
                prompt=[user(text)],
                question_id=number,
                model_a="alpaca-13b",
                model_b="gpt-4",
                judge="arena_user_1",
                language="English",
            )
            for make, text, number in ((light, LIGHT, "1"), (bill, BILL, "2"))
        ],
        {TIE: 1},
    ),
    "distilabel_intel_orca": Read(
        'texts, explicit prompt; the prompt is "input"; system message in "system"; rows with '
        '"status" tie are left out; the scores in "rating" are not used',
        [
            light(
                labelling_model="gpt-4-1106-preview",
                status="unchanged",
                original_chosen=GOOD,
                original_rejected=BAD,
            ),
            bill(
                "3",
                [DESK, user(BILL)],
                labelling_model="gpt-4-1106-preview",
                status="swapped",
                original_chosen=HERE,
                original_rejected=UNKNOWN,
            ),
        ],
        {'pair whose "status" is tie': 1},
    ),
    "distilabel_orca_kto": Read(
        'unpaired, "completion" with "label" true against false of the same prompt; system message '
        'in "system"; rows with "status" tie are left out; the scores in "rating" are not used',
        [
            light("1+2", status="unchanged"),
            bill("3+4", [DESK, user(BILL)], status="unchanged"),
        ],
        {'pair whose "status" is tie': 1},
    ),
    "dpo_mix_7k": Read(
        "conversational, implicit prompt",
        [
            bill(
                "1",
                [user("Hello"), assistant("Hello, how can I help?"), user(BILL)],
                dataset="argilla/distilabel-capybara-dpo-7k-binarized",
            ),
            light("2", [DESK, user(LIGHT)], dataset="argilla/distilabel-intel-orca-dpo-pairs"),
        ],
    ),
    "helpsteer2": Read(
        '"response" of neighbouring rows, best against worst by "helpfulness" (greater is better); '
        "the prompt's turns as messages",
        [
            light("2+1"),
            bill("3+4", [user("Hello"), assistant("Hello, how can I help?"), user(BILL)]),
        ],
        {TIE: 1},
    ),
    "helpsteer2_preference": Read(
        'A/B, "response_1" against "response_2" by "preference_strength" (below 0 is "response_1", '
        "0 is a tie)",
        [
            make(
                split="train",
                preference_statement="@Response 1 is better than @Response 2 because it says what "
                "to do.",
                preference_elaboration="It names the button.",
            )
            for make in (light, bill)
        ],
        {TIE: 1},
    ),
    "helpsteer3": Read(
        'A/B, "response1" against "response2" by "overall_preference" (below 0 is "response1", 0 '
        'is a tie); the prompt is "context"',
        [
            light(prompt=[user(LIGHT)], domain="general", language="english"),
            bill(prompt=ASKED, domain="general", language="english"),
        ],
        {TIE: 1},
    ),
    "hh_rlhf": Read(
        "texts in Human/Assistant turns, implicit prompt",
        [
            light(prompt=[user(LIGHT)]),
            bill(
                prompt=[
                    user("Hello"),
                    assistant("What is it?\n\nIs it the phone?"),
                    user(BILL),
                ]
            ),
        ],
    ),
    "intel_orca_dpo_pairs": Read(
        'texts, explicit prompt; the prompt is "question"; system message in "system"',
        [
            light(),
            bill(prompt=[system("You are an AI assistant. Think step by step."), user(BILL)]),
        ],
    ),
    "kto_mix_14k": Read(
        'unpaired, "completion" with "label" true against false of the same prompt',
        [bill("4+2", ASKED), light("1+5", [user(LIGHT)])],
        {"good answer without a bad one to the same prompt": 1},
    ),
    "kto_mix_15k": Read(
        'unpaired, "completion" with "label" true against false of the same prompt; "prompt" '
        'repeats the prompt; the scores in "rating" are not used',
        [
            light(
                "1+2", [user(LIGHT)], dataset="argilla/ultrafeedback-binarized-preferences-cleaned"
            ),
            bill("4+3", ASKED, dataset="argilla/distilabel-capybara-dpo-7k-binarized"),
        ],
    ),
    "llama_factory_alpaca": Read(
        'texts, explicit prompt; the prompt is "instruction" and "input"; system message in '
        '"system"; history in "history"',
        [
            light(),
            bill(
                prompt=[
                    DESK,
                    user("Hello"),
                    assistant("What is it?"),
                    user(f"Answer the customer.\n{BILL}"),
                ]
            ),
        ],
    ),
    "llama_factory_alpaca_kto": Read(
        'unpaired, "output" with "kto_tag" true against false of the same prompt; the prompt is '
        '"instruction" and "input"',
        [light("1+3"), bill("4+2", f"Answer the customer.\n{BILL}")],
    ),
    "llama_factory_kto": Read(
        'unpaired, "messages" with "label" true against false of the same prompt',
        [bill("2+3", ASKED), light("1+4", [user(LIGHT)])],
    ),
    "llama_factory_ranking": Read(
        'texts, explicit prompt; the prompt is "instruction" and "input"; the better and the worse '
        'answer in "output"',
        [light(), bill(prompt=f"Answer the customer.\n{BILL}")],
    ),
    "llama_factory_sharegpt": Read(
        'conversations in ShareGPT form; the prompt is "conversations"; system message in '
        '"system"; tools in "tools"',
        [
            light(prompt=[DESK, user(LIGHT)]),
            PreferencePair(
                [
                    *ASKED,
                    assistant("", tool_calls=month("May")),
                    {"role": "tool", "content": "May: 12 pounds"},
                ],
                assistant("Your bill of May is 12 pounds."),
                assistant(UNKNOWN),
                "2",
                [TOOL],
            ),
        ],
    ),
    "llama_factory_sharegpt_kto": Read(
        'unpaired, "conversations" with "kto_tag" true against false of the same prompt',
        [light("1+2", [user(LIGHT)])],
    ),
    "mlx_lm_lora_content": Read(
        'conversational, explicit prompt; the prompt is "question"', [light(), bill()]
    ),
    "mlx_lm_lora_messages": Read(
        'conversational, implicit prompt; "prompt" repeats the prompt',
        [light(prompt=[user(LIGHT)]), bill(prompt=[user(BILL)])],
    ),
    "mlx_lm_lora_text": Read("texts, explicit prompt", [light(), bill()]),
    "nectar": Read(
        '"answers", best against worst by "rank" (smaller is better); the prompt\'s turns as '
        "messages",
        [light(prompt=[user(LIGHT)]), bill(prompt=ASKED)],
    ),
    "openhermes_preferences": Read(
        'conversational, implicit prompt; "prompt" repeats the prompt; the scores in "ranks" are '
        "not used",
        [
            make(
                prompt=[user(text)],
                source="airoboros2.2",
                category="plan",
                rank_str="B>C>A",
                chosen_policy="NousResearch/Nous-Hermes-2-Yi-34B",
                rejected_policy="mistralai/Mixtral-8x7B-Instruct-v0.1",
            )
            for make, text in ((light, LIGHT), (bill, BILL))
        ],
    ),
    "openhermes_rankings": Read(
        '"candidates_completions", best against worst by "ranks" (smaller is better)',
        [light(source="airoboros2.2"), bill(source="airoboros2.2")],
    ),
    "pku_saferlhf": Read(
        'A/B, "response_0" against "response_1" by "better_response_id" (0 is "response_0", 1 is '
        '"response_1")',
        [light(), bill()],
    ),
    "rendered_chatml": Read(
        "texts with a template's markers, taken as they stand",
        [raw(light(), "<|im_end|>"), raw(bill(), "<|im_end|>")],
    ),
    "rendered_whole": Read(
        "texts with a template's markers, taken as they stand",
        [raw(light(), "<|im_end|>\n"), raw(bill(), "<|im_end|>\n")],
    ),
    "shp": Read(
        'A/B, "human_ref_A" against "human_ref_B" by "labels" (1 is "human_ref_A", 0 is '
        '"human_ref_B"); the prompt is "history"',
        [
            make(
                post_id="qt3nxl",
                domain="askculinary_train",
                c_root_id_A="hkh25sc",
                c_root_id_B="hkh25lp",
            )
            for make in (light, bill)
        ],
    ),
    "snorkel_pairrm": Read(
        'conversational, implicit prompt; "prompt" repeats the prompt; the scores in '
        '"all_rm_scores" are not used',
        [
            light(prompt=[user(LIGHT)], prompt_id="f2b1"),
            bill(prompt=[user(BILL)], prompt_id="f2b1"),
        ],
    ),
    "trl_conversational": Read(
        "conversational, explicit prompt",
        [
            light(prompt=[user(LIGHT)]),
            PreferencePair(
                [DESK, user(BILL), assistant("It is")],
                assistant(" under Orders."),
                assistant(" lost."),
                "2",
            ),
        ],
    ),
    "trl_reasoning": Read(
        "conversational, explicit prompt",
        [
            PreferencePair(
                [user(prompt)],
                assistant(chosen, reasoning_content="What helps?"),
                assistant(rejected, reasoning_content="Hm."),
                place,
            )
            for prompt, chosen, rejected, place in (
                (LIGHT, GOOD, BAD, "1"),
                (BILL, HERE, UNKNOWN, "2"),
            )
        ],
    ),
    "trl_standard": Read(
        "texts, explicit prompt",
        [
            PreferencePair("The light is", assistant(" green."), assistant(" lost."), "1"),
            PreferencePair("The bill is", assistant(" under Orders."), assistant(" late."), "2"),
        ],
    ),
    "trl_tools": Read(
        'conversational, explicit prompt; tools in "tools"',
        [
            PreferencePair(
                [user("What is my bill of May?")],
                assistant("", tool_calls=month("May")),
                assistant("", tool_calls=month("June")),
                "1",
                [{"type": "function", "function": TOOL}],
            ),
            PreferencePair(
                [
                    user(BILL),
                    assistant("", tool_calls=month("May")),
                    {"role": "tool", "name": "find_bill", "content": "12 pounds"},
                ],
                assistant("It is 12 pounds."),
                assistant(UNKNOWN),
                "2",
                [{"type": "function", "function": TOOL}],
            ),
        ],
    ),
    "tulu_3_mixture": Read(
        'conversational, implicit prompt; "prompt" repeats the prompt',
        [
            light(
                prompt=[user(LIGHT)],
                id="ai2-adapt-dev/flan_v2_converted_1",
                source="ai2-adapt-dev/sft_v3.9_used_off_policy",
            ),
            bill(
                prompt=ASKED,
                id="ai2-adapt-dev/wildchat_2",
                source="ai2-adapt-dev/WildChat-prefs-280824",
            ),
        ],
    ),
    "ultrafeedback_argilla": Read(
        'texts, explicit prompt; the prompt is "instruction"',
        [
            light(source="evol_instruct", chosen_model="gpt-4"),
            bill(source="evol_instruct", chosen_model="gpt-4"),
        ],
    ),
    "ultrafeedback_argilla_cleaned": Read(
        'conversational, implicit prompt; "prompt" repeats the prompt',
        [
            make(
                prompt=[user(text)],
                **{
                    "source": "ultrachat",
                    "chosen-model": "gpt-4",
                    "rejected-model": "alpaca-7b",
                },
            )
            for make, text in ((light, LIGHT), (bill, BILL))
        ],
    ),
    "ultrafeedback_argilla_kto": Read(
        'unpaired, "completion" with "label" true against false of the same prompt; the scores in '
        '"average_rating" are not used',
        [light("1+2", source="ultrachat"), bill("4+3", source="ultrachat")],
    ),
    "ultrafeedback_binarized_h4": Read(
        'conversational, implicit prompt; "prompt" repeats the prompt',
        [
            light(prompt=[user(LIGHT)], prompt_id="0af1b2c3" * 8),
            bill(prompt=[user(BILL)], prompt_id="9c1d2e3f" * 8),
        ],
    ),
    "ultrafeedback_binarized_trl": Read(
        "conversational, implicit prompt",
        [light(prompt=[user(LIGHT)]), bill(prompt=[user(BILL)])],
    ),
    "ultrafeedback_openbmb": Read(
        '"completions", best against worst by "overall_score" (greater is better); the prompt is '
        '"instruction"',
        [light(source="sharegpt"), bill(source="truthful_qa")],
    ),
    "ultrafeedback_ratings": Read(
        '"completions", best against worst by "annotations" (greater is better); the prompt is '
        '"instruction"',
        [light(source="flan"), bill(source="flan")],
        {'answer without a number in "annotations"': 1},
    ),
}


def test_every_fixture_is_read() -> None:
    assert {file.stem for file in FIXTURES.iterdir()} == set(SETS)


@pytest.mark.parametrize("name", SETS)
def test_a_public_set_becomes_these_pairs(name: str) -> None:
    file = FIXTURES / f"{name}.jsonl"
    (source,) = find_sources([str(file)], splits=["train"])
    problems: list[Problem] = []
    drops: Counter[str] = Counter()
    told: list[str] = []
    pairs = list(iter_pairs(source, Reading(), problems, drops, told.append))
    expected = SETS[name]
    assert problems == []
    assert pairs == [p._replace(place=f"{file}:{p.place}") for p in expected.pairs]
    assert drops == expected.drops
    assert told == [f"{file}: read as: {expected.sentence}."]


@pytest.mark.parametrize("name", SETS)
def test_nulls_that_arrow_writes_for_missing_keys_change_nothing(name: str, tmp_path: Path) -> None:
    lines = (FIXTURES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    file = tmp_path / f"{name}.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in unified(rows)), encoding="utf-8")
    (source,) = find_sources([str(file)], splits=["train"])
    problems: list[Problem] = []
    pairs = list(iter_pairs(source, Reading(), problems, Counter()))
    assert problems == []
    assert pairs == [p._replace(place=f"{file}:{p.place}") for p in SETS[name].pairs]


def unified(values: list[Any]) -> list[Any]:
    """Values with the keys of all dicts that stand at the same place in each of them."""
    dicts = [v for v in values if isinstance(v, dict)]
    keys = dict.fromkeys(key for v in dicts for key in v)
    columns = {key: iter(unified([v.get(key) for v in dicts])) for key in keys}
    items = [item for v in values if isinstance(v, list) for item in v]
    inner = iter(unified(items) if items else [])
    return [
        {key: next(columns[key]) for key in keys} if isinstance(v, dict)
        else [next(inner) for _ in v] if isinstance(v, list) else v
        for v in values
    ]  # fmt: skip
