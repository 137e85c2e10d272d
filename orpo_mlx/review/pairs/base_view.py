"""Pairs as a base sees them: what its template and limits cut, and how likely it finds them."""

from collections.abc import Iterator, Mapping, Sequence

from orpo_mlx.config.data import DataCheckConfig
from orpo_mlx.config.train import EvaluateConfig
from orpo_mlx.data.pairs.messages import PreferencePair
from orpo_mlx.data.quality.by_model import BaseLogps, RenderedFacts
from orpo_mlx.data.quality.check import Seen
from orpo_mlx.data.tokens.encode import SAME_RENDERED, SAME_TOKENS, encode_block, losses_of
from orpo_mlx.data.tokens.encoder import EncodedPair, Encoder
from orpo_mlx.data.tokens.pair_facts import ids_beyond
from orpo_mlx.events import Callback, Notice, Progress
from orpo_mlx.loading import build_encoder, check_ids, open_base, template_of, thinking_for
from orpo_mlx.model.base import Base, vocabulary_rows
from orpo_mlx.training.checks.self_check import choose_path
from orpo_mlx.training.evaluate import evaluate_encoded

BLOCK = 250  # pairs encoded at once
BATCH = 4  # pairs computed at once


def seen_by_base(
    config: DataCheckConfig, splits: Mapping[str, Sequence[PreferencePair]], report: Callback
) -> Seen:
    """What the base of the settings sees of all pairs, and thinks of the first of each split."""
    given = config.model_fields_set & set(EvaluateConfig.model_fields)
    options = EvaluateConfig(**{name: getattr(config, name) for name in given | {"model", "data"}})
    base = open_base(options)
    for text in base.notices:
        report(Notice(text))
    pairs = [pair for own in splits.values() for pair in own]
    template = template_of(options)
    encoder = build_encoder(
        base,
        template,
        thinking_for(template, pairs, report),
        config,
    )
    first = [n < config.pairs for own in splits.values() for n in range(len(own))]
    facts: list[RenderedFacts] = []
    encoded: dict[int, EncodedPair] = {}
    beyond: list[EncodedPair] = []
    rows = vocabulary_rows(base.model)
    for number, (ids, fact) in enumerate(_rendered(pairs, encoder, report)):
        facts.append(fact)
        if ids is not None and ids_beyond([ids], rows):
            beyond.append(ids)
        if ids is not None and first[number]:
            encoded[number] = ids
    check_ids(base, beyond)
    judged = dict(zip(encoded, _logps(base, list(encoded.values()), report), strict=True))
    return Seen(facts, [judged.get(n) for n in range(len(pairs))], config.max_seq_length)


def _rendered(
    pairs: Sequence[PreferencePair], encoder: Encoder, report: Callback
) -> Iterator[tuple[EncodedPair | None, RenderedFacts]]:
    for start in range(0, len(pairs), BLOCK):
        block = pairs[start : start + BLOCK]
        encoded, _ = encode_block(block, encoder)
        losses = losses_of(block, encoder)
        for pair, ids, unwritten in zip(block, encoded, losses, strict=True):
            facts = _left_out(pair, encoder) if ids is None else _cut(ids, encoder)
            yield ids, facts._replace(unwritten=unwritten)
        report(Progress("Tokenizing pairs", start + len(block), len(pairs)))


def _cut(ids: EncodedPair, encoder: Encoder) -> RenderedFacts:
    """Which answers lost their end token: nothing but the limit takes it."""
    answers = (("chosen", ids.chosen), ("rejected", ids.rejected))
    return RenderedFacts(tuple(n for n, r in answers if int(r[-1]) not in encoder.end_ids))


def _left_out(pair: PreferencePair, encoder: Encoder) -> RenderedFacts:
    """Why a pair has no ids."""
    _, report = encode_block([pair], encoder)
    if report.refused:
        return RenderedFacts(refused=report.refused[0].removeprefix(f"{pair.location}: "))
    if report.unwritten:
        return RenderedFacts()
    if SAME_TOKENS in report.pairs_left_out:
        return RenderedFacts(same_tokens=True)
    same = SAME_RENDERED in report.pairs_left_out
    cut = any("cut at its end" in note for note in report.notes)
    return RenderedFacts(("chosen", "rejected") if cut or not same else (), same)


def _logps(base: Base, encoded: Sequence[EncodedPair], report: Callback) -> list[BaseLogps]:
    """Mean log-probs of every pair."""
    if not encoded:
        return []
    path = choose_path(base, encoded, report)
    values = evaluate_encoded(
        path, encoded, beta=0.0, nll_on="response", batch_size=BATCH, stage="Base", report=report
    )
    both = zip(values["logps/chosen"], values["logps/rejected"], strict=True)
    return [BaseLogps(float(chosen), float(rejected)) for chosen, rejected in both]
