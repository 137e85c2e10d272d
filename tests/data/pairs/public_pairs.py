"""Public sets whose rows hold two answers, the better one named."""

from orpo_mlx.data.pairs.load import PreferencePair
from tests.data.pairs.public_rows import (
    ASKED,
    BAD,
    BILL,
    DESK,
    GOOD,
    HERE,
    LIGHT,
    TOOL,
    UNKNOWN,
    Read,
    bill,
    light,
    month,
    raw,
)
from tests.data.rows import assistant, system, user

SETS = {
    "axolotl_chat_template": Read(
        'conversational, explicit prompt; the prompt is "messages"',
        [light(prompt=[user(LIGHT)]), bill(prompt=[DESK, *ASKED])],
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
    "mlx_lm_lora_content": Read(
        'conversational, explicit prompt; the prompt is "question"', [light(), bill()]
    ),
    "mlx_lm_lora_messages": Read(
        'conversational, implicit prompt; "prompt" repeats the prompt',
        [light(prompt=[user(LIGHT)]), bill(prompt=[user(BILL)])],
    ),
    "mlx_lm_lora_text": Read("texts, explicit prompt", [light(), bill()]),
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
    "rendered_chatml": Read(
        "texts with a template's markers, used as they are",
        [raw(light(), "<|im_end|>"), raw(bill(), "<|im_end|>")],
    ),
    "rendered_whole": Read(
        "texts with a template's markers, used as they are",
        [raw(light(), "<|im_end|>\n"), raw(bill(), "<|im_end|>\n")],
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
                location,
            )
            for prompt, chosen, rejected, location in (
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
}
