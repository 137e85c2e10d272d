"""The page of a verdict: one file that loads nothing, in which all text is text."""

import re
from pathlib import Path

from orpo_mlx.judging.forgotten import ForgottenByModels
from orpo_mlx.judging.verdict import build_verdict, verdict_sentences
from orpo_mlx.judging.verdict_page import render_verdict_page, save_verdict_page
from orpo_mlx.judging.votes import EditedAnswer
from orpo_mlx.review.forgetting.measure import Forgotten
from tests.judging.verdicts import answers_of, ids_of, session_facts, votes_of
from tests.review.pairs.test_check_page import EVIL, Tags

FORGOTTEN = ForgottenByModels(EVIL, {EVIL: Forgotten(60, 3900, 2.5, 2.6, 0.08, 0.12)})


def evil_page(outcomes: list[str], forgotten: ForgottenByModels = FORGOTTEN) -> str:
    """Of a session in which models, judges and settings write markup."""
    facts = session_facts(len(outcomes), left_out={EVIL: 3})
    answers = answers_of(facts.prompts, model=EVIL, revision=EVIL, eos_token=EVIL)
    changes = {"text": EVIL, "thought": EVIL, "group": EVIL, "prompt": f"First {EVIL}"}
    answers = {i: row.model_copy(update=changes) for i, row in answers.items()}
    edit = EditedAnswer(of=ids_of(0)[0], text=EVIL)
    changes = {"note": EVIL, "edit": edit, "judge": EVIL}
    votes = [row.model_copy(update=changes) for row in votes_of(facts, outcomes)]
    return render_verdict_page(build_verdict(answers, votes, facts), forgotten)


def test_what_models_judges_and_settings_write_is_text() -> None:
    page = evil_page(["adapter"] * 20 + ["base"] * 3)
    tags = Tags()
    tags.feed(page)
    names = {name for name, _ in tags.seen}
    assert page.count("&lt;script&gt;") > 23 * 4
    assert not names & {"script", "img", "iframe", "link", "object"}
    assert not [a for _, attributes in tags.seen for a in attributes if a.startswith("on")]


def test_nothing_is_loaded_from_elsewhere() -> None:
    page = evil_page(["adapter"] * 20)
    tags = Tags()
    tags.feed(page)
    assert not [a for _, own in tags.seen for a in own if a in ("src", "href", "srcset", "data")]
    assert "@import" not in page and "url(" not in page


def test_the_page_has_every_sentence_count_and_setting() -> None:
    outcomes = ["adapter"] * 16 + ["base"] * 4 + ["tie", "bad", "skip"]
    facts = session_facts(len(outcomes) + 2, equal=1, stops=[3])
    adapter = {"adapter_sum": "0123456789abcdef", "template_args": {"tone": "dry"}}
    answers = answers_of(facts.prompts, **adapter, model="/home/me/models/small", thinking=True)
    verdict = build_verdict(answers, votes_of(facts, outcomes), facts)
    page = render_verdict_page(verdict, ForgottenByModels("", {}, "there is no model"))
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    for sentence in verdict_sentences(verdict):
        assert sentence in text
    for count in ("25 prompts", "16 the adapter", "4 the base", "2 ties, 1 of equal texts",
                  "1 both bad", "1 skipped", "1 not judged"):  # fmt: skip
        assert count in text
    for setting in ("name round-1 base", "model small small", "adapter adapters/round-1 none",
                    "adapter sum 0123456789ab none", "thinking on off",
                    "template args tone=dry none"):  # fmt: skip
        assert setting in text
    assert "/home/me" not in page
    assert "What was forgotten was not measured: there is no model." in text


def test_the_bar_is_where_the_numbers_are() -> None:
    facts = session_facts(44)
    outcomes = ["adapter"] * 31 + ["base"] * 13
    verdict = build_verdict(answers_of(44), votes_of(facts, outcomes), facts)
    page = render_verdict_page(verdict, FORGOTTEN)
    assert 'class="point" style="left: 70.5%"' in page
    # Wilson's interval of 31 of 44: 55.8 to 81.8
    assert 'class="range" style="left: 55.8%; width: 26.1%"' in page


def test_each_judged_prompt_is_there_with_both_answers_and_the_vote() -> None:
    facts = session_facts(4)
    outcomes = ["adapter", "base", "tie", "bad"]
    verdict = build_verdict(answers_of(4), votes_of(facts, outcomes), facts)
    page = render_verdict_page(verdict, FORGOTTEN)
    folded = re.findall(r"<details>\s*<summary>(.*?)</summary>(.*?)</details>", page, re.DOTALL)
    seen = [re.sub(r"<[^>]+>", "|", head) for head, _ in folded]
    votes = ["the adapter preferred", "the base preferred", "a tie", "both bad"]
    assert seen == [f"Prompt {n}?|{vote}|" for n, vote in enumerate(votes)]
    for n, (_, body) in enumerate(folded):
        assert f"round-1 says {n}." in body and f"base says {n}." in body
    assert "the adapter, preferred" in folded[0][1] and "the base, preferred" in folded[1][1]


def test_a_page_without_a_decided_prompt_has_no_bar(tmp_path: Path) -> None:
    facts = session_facts(2)
    verdict = build_verdict(answers_of(2), votes_of(facts, ["tie", "tie"]), facts)
    save_verdict_page(verdict, FORGOTTEN, tmp_path / "verdict.html")
    page = (tmp_path / "verdict.html").read_text()
    assert "No prompt was decided" in page
    assert 'class="scale"' not in page


def test_a_test_is_shown_only_where_it_was_one() -> None:
    for outcomes, prompts, shown in [
        (["adapter"] * 20, 20, "(p &lt; 0.001)"),
        (["adapter"] * 5 + ["base"] * 5, 10, "(p = 1.000)"),
        (["adapter"] * 20, 21, "Not tested: prompts are missing."),
    ]:
        facts = session_facts(prompts)
        verdict = build_verdict(answers_of(prompts), votes_of(facts, outcomes), facts)
        page = render_verdict_page(verdict, ForgottenByModels("", {}, "there is no model"))
        assert shown in page
        assert ("(p " in page) == (prompts == len(outcomes))


def test_no_folder_of_this_machine_is_in_what_was_forgotten() -> None:
    facts = session_facts(1)
    answers = answers_of(1, model="/home/me/models/small", adapter="/home/me/adapters/mine")
    verdict = build_verdict(answers, votes_of(facts, ["adapter"]), facts)
    measured = {"the adapter": Forgotten(60, 3900, 2.5, 2.6, 0.08, 0.12)}
    for forgotten, shown in [
        (ForgottenByModels("/home/me/news.txt", measured), "On news.txt (3,900 tokens)"),
        (ForgottenByModels("", {}, "/home/me/adapters/mine/a.safetensors: gone"), "mine/a.safe"),
        (ForgottenByModels("", {}, "/home/me/models/small has no config.json"), "d: small has"),
    ]:
        page = render_verdict_page(verdict, forgotten)
        assert shown in page
        assert "/home/me" not in page
