"""Public sets whose rows hold answers with a label, a score, a rank or a verdict."""

from tests.data.pairs.public_rows import ASKED, BILL, DESK, LIGHT, TIE, Read, bill, light
from tests.data.rows import assistant, user

SETS = {
    "alpaca_farm": Read(
        'A/B, "output_1" against "output_2" by "preference" (names one of them, or a tie); '
        'the prompt is "instruction" and "input"',
        [light(), bill(prompt=f"Answer the customer.\n{BILL}")],
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
    "distilabel_orca_kto": Read(
        'unpaired, "completion" with "label" true against false of the same prompt; system message '
        'in "system"; rows with "status" tie are left out; the scores in "rating" are not used',
        [
            light("1+2", status="unchanged"),
            bill("3+4", [DESK, user(BILL)], status="unchanged"),
        ],
        {'pair whose "status" is tie': 1},
    ),
    "helpsteer2": Read(
        '"response" of consecutive rows, best against worst by "helpfulness" (greater is better); '
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
    "llama_factory_alpaca_kto": Read(
        'unpaired, "output" with "kto_tag" true against false of the same prompt; the prompt is '
        '"instruction" and "input"',
        [light("1+3"), bill("4+2", f"Answer the customer.\n{BILL}")],
    ),
    "llama_factory_kto": Read(
        'unpaired, "messages" with "label" true against false of the same prompt',
        [bill("2+3", ASKED), light("1+4", [user(LIGHT)])],
    ),
    "llama_factory_sharegpt_kto": Read(
        'unpaired, "conversations" with "kto_tag" true against false of the same prompt',
        [light("1+2", [user(LIGHT)])],
    ),
    "nectar": Read(
        '"answers", best against worst by "rank" (smaller is better); the prompt\'s turns as '
        "messages",
        [light(prompt=[user(LIGHT)]), bill(prompt=ASKED)],
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
    "ultrafeedback_argilla_kto": Read(
        'unpaired, "completion" with "label" true against false of the same prompt; the scores in '
        '"average_rating" are not used',
        [light("1+2", source="ultrachat"), bill("4+3", source="ultrachat")],
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
