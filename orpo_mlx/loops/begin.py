"""How a round begins: its prompts, and what is before the judge. Imports no mlx."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orpo_mlx.config.judging import LoopConfig, SampleConfig
from orpo_mlx.events import Callback, Notice
from orpo_mlx.files import remove, replacing
from orpo_mlx.judging.plan import repeats_of
from orpo_mlx.judging.power import power_sentence
from orpo_mlx.judging.session import VOTES
from orpo_mlx.loops.commands import RoundPaths
from orpo_mlx.loops.split import prompt_id, prompts_of_round, sides_of
from orpo_mlx.loops.state import (
    LoopState,
    Round,
    Side,
    changed_options,
    check_changes,
    kept_settings,
    save_loop,
)
from orpo_mlx.sampling.prompts import AskedPrompt, load_prompts


def take_back_round(
    config: LoopConfig, state: LoopState | None, folder: Path, report: Callback
) -> LoopState | None:
    """The state with which these options can go on; raises OrpoError if they contradict it.

    A round without a vote that other options were given for is taken back, of one with votes only
    an unfinished training.
    """
    if state is None or not state.rounds:
        return state
    paths = RoundPaths(folder, state.current.number)
    is_judged = not state.current.ended and (paths.session("pairs") / VOTES).exists()
    check_changes(state, config, is_judged=is_judged)
    if state.current.ended or not changed_options(state, config):
        return state
    if is_judged:
        return _train_otherwise(config, state, paths, report)
    report(Notice(f"Round {paths.number} begins again with other options: it has no vote yet."))
    rounds = state.rounds[:-1]
    earlier = state.model_copy(
        update={"rounds": rounds, "sides": state.sides if rounds else {}}  # nothing was asked
    )
    save_loop(folder, earlier)
    remove(paths.folder)
    return earlier


def _train_otherwise(
    config: LoopConfig, state: LoopState, paths: RoundPaths, report: Callback
) -> LoopState:
    """The same round with other options of training, and without what these have not made."""
    if paths.adapter.exists():
        report(Notice(f"Round {paths.number} is trained again with other options."))
        remove(paths.adapter)
    changed = state.model_copy(update={"settings": kept_settings(config)})
    save_loop(paths.loop, changed)
    return changed


def begin_round(
    config: LoopConfig, state: LoopState | None, folder: Path, report: Callback
) -> LoopState:
    """The state with a new round, whose prompts are chosen and written."""
    rounds = state.rounds if state else []
    source = SampleConfig(model=config.model, prompts=config.prompts, group_by=config.group_by)
    asked = {prompt_id(prompt.hash): prompt for prompt in load_prompts(source, report)}
    wanted: dict[Side, int] = {"pairs": config.pair_prompts, "verdict": config.verdict_prompts}
    sides = sides_of(
        [prompt.hash for prompt in asked.values()],
        state.sides if state else {},
        verdict_share=config.verdict_prompts / sum(wanted.values()),
        seed=config.seed,
    )
    chosen = prompts_of_round(asked, sides, rounds, counts=wanted, seed=config.seed)
    paths = RoundPaths(folder, len(rounds) + 1)
    if not (paths.session("pairs") / VOTES).exists():
        remove(paths.folder)  # of a round that was taken back, and then killed
    for side, ids in chosen.items():
        _write_prompts(paths.prompts(side), [asked[prompt] for prompt in ids])
    new = Round(
        number=paths.number, pair_prompts=chosen["pairs"], verdict_prompts=chosen["verdict"]
    )
    before = state or LoopState(settings={}, sides={}, rounds=[])
    changes = {"settings": kept_settings(config), "sides": sides, "rounds": [*rounds, new]}
    begun = before.model_copy(update=changes)
    save_loop(folder, begun)
    for text in _opening(config.name, begun):
        report(Notice(text))
    return begun


def _write_prompts(file: Path, prompts: Sequence[AskedPrompt]) -> None:
    with replacing(file) as new:
        new.write_text(
            "".join(f"{json.dumps(_row(prompt), ensure_ascii=False)}\n" for prompt in prompts),
            encoding="utf-8",
        )


def _row(prompt: AskedPrompt) -> dict[str, Any]:
    name = "prompt" if isinstance(prompt.prompt, str) else "messages"
    more = {"tools": prompt.tools, "group": prompt.group}
    return {name: prompt.prompt} | {key: value for key, value in more.items() if value is not None}


def _opening(name: str, state: LoopState) -> list[str]:
    """What is before the judge, and what it can show."""
    current, before = state.current, state.rounds[:-1]
    pairs, verdict = len(current.pair_prompts), len(current.verdict_prompts)
    again = {prompt for one in before for prompt in one.asked}
    repeated = len(again & {*current.pair_prompts, *current.verdict_prompts})
    lines = [
        f"Round {current.number} of {name}: up to {pairs} + {verdict} votes (for pairs, for the "
        f"verdict), and {repeats_of(pairs)} + {repeats_of(verdict)} of them a second time, which "
        "shows how steady they are.",
        f"The verdict: {power_sentence(verdict)}",
    ]
    if repeated:
        lines.append(
            f"{repeated} of these prompts were asked in an earlier round: there are no others on "
            "their side. Add some with --prompts before a round begins."
        )
    return lines
