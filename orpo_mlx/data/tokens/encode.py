"""Pairs to token ids, cut to the limits; what happened to them is counted by reason."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from orpo_mlx.data.pairs.load import PreferencePair
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.tokens.encoder import EncodedPair, Encoder
from orpo_mlx.data.tokens.rendering.message_keys import NOT_WRITTEN
from orpo_mlx.data.tokens.rendering.reasoning import split_reasoning
from orpo_mlx.data.tokens.rendering.refused import RefusedError
from orpo_mlx.data.tokens.rendering.template import Rendered
from orpo_mlx.data.tokens.unwritten import NOTHING, Loss
from orpo_mlx.errors import OrpoError, collected

CHECKED_BOUNDARIES = 200
# Pairs that are encoded at once.
BLOCK = 250
SAME_RENDERED = "chosen and rejected are the same after rendering and truncation"
SAME_TOKENS = "chosen and rejected are different texts, but the same tokens"
UNWRITTEN = "pair with characters that the tokenizer has no tokens for"


def encode_pairs(
    pairs: Sequence[PreferencePair],
    encoder: Encoder,
    progress: Callable[[int], None] = lambda done: None,
    *,
    drop_bad: bool = False,
) -> tuple[list[EncodedPair], ReadReport]:
    """All pairs as ids, cut to the limits; raises one OrpoError naming every row refused.

    With `drop_bad` those rows are left out and counted.
    """
    encoded: list[EncodedPair] = []
    report = ReadReport()
    for start in range(0, len(pairs), BLOCK):
        block, part = encode_block(pairs[start : start + BLOCK], encoder, compared=not start)
        encoded += [pair for pair in block if pair is not None]
        report.add(part)
        progress(report.pairs)
    if drop_bad:
        report.drop_bad()
    if errors := encoding_errors(report, encoder):
        raise OrpoError("\n".join(errors))
    return encoded, report


def encode_block(
    pairs: Sequence[PreferencePair], encoder: Encoder, *, compared: bool = False
) -> tuple[list[EncodedPair | None], ReadReport]:
    """`encode_pairs` of a few pairs at once, None for those left out; rows refused are reported.

    `compared`: count the first pairs that would be other tokens as one text, too.
    """
    report = ReadReport(pairs=len(pairs))
    texts = render_block(pairs, encoder, report)
    return encode_rendered(pairs, texts, encoder, report, compared=compared), report


def render_block(
    pairs: Sequence[PreferencePair], encoder: Encoder, report: ReadReport
) -> list[Rendered | None]:
    """The texts of a few pairs, None for those that the template cannot render."""
    texts: list[Rendered | None] = []
    for pair in pairs:
        notes: Counter[str] = Counter()
        try:
            texts.append(encoder.render_pair(pair, notes))
        except RefusedError as error:
            texts.append(None)
            report.refused.append(f"{pair.location}: {error}")
        report.notes.update(notes)
        for what in notes:
            if what.endswith(NOT_WRITTEN):
                report.first.setdefault(what, pair.location)
    return texts


def encode_rendered(
    pairs: Sequence[PreferencePair],
    texts: Sequence[Rendered | None],  # from render_block
    encoder: Encoder,
    report: ReadReport,
    *,
    compared: bool = False,
) -> list[EncodedPair | None]:
    """The ids of texts, None for pairs that are left out."""
    encoded: list[EncodedPair | None] = [None] * len(pairs)
    accepted = [number for number, text in enumerate(texts) if text is not None]
    rendered = [text for text in texts if text is not None]
    ids = encoder.encode_all([pairs[number] for number in accepted], rendered, report.notes)
    losses = _losses(rendered, encoder)
    for number, text, whole, lost in zip(accepted, rendered, ids, losses, strict=True):
        pair = pairs[number]
        if pair.extra_messages:
            report.notes["message after the first answer, cut"] += pair.extra_messages
        if any(loss.lost for loss in lost):
            report.notes[UNWRITTEN] += 1
        if any(loss.most for loss in lost[1:]):
            lost = lost[: 1 + len(pair.responses)]
            report.unwritten.append(f"{pair.location}: {describe_loss(lost)}")
            continue
        encoded[number] = _cut(pair, text, whole, encoder, report)
    if compared:
        rendered = rendered[:CHECKED_BOUNDARIES]
        if differing := encoder.count_differing(rendered):
            what = f"pair of the first {len(rendered)} that would be other tokens as one text"
            report.notes[what] = differing
    report.kept = sum(pair is not None for pair in encoded)
    return encoded


def encoding_errors(report: ReadReport, encoder: Encoder) -> list[str]:
    """An error for the rows that cannot be rendered, and one for those mostly without tokens."""
    errors = []
    if report.refused:
        how = f" with {encoder.name}" if encoder.has_template else ""
        rows = _rows(report.refused)
        errors.append(str(collected(f"{rows} cannot be rendered{how}:", report.refused)))
    if report.unwritten:
        heading = (
            f"{_rows(report.unwritten)} with a response that the tokenizer mostly has no tokens "
            "for (take a base that knows its script):"
        )
        errors.append(str(collected(heading, report.unwritten)))
    return errors


def _rows(lines: Sequence[str]) -> str:
    return "1 row" if len(lines) == 1 else f"{len(lines):,} rows"


def describe_loss(losses: Sequence[Loss]) -> str:
    """How much of prompt, chosen and rejected has no tokens; "" if nothing is lost."""
    named = zip(("prompt", "chosen", "rejected"), losses, strict=False)
    parts = [f"{loss} of {name}" for name, loss in named if loss.lost]
    return f"no tokens for {', '.join(parts)}" if parts else ""


def losses_of(pairs: Sequence[PreferencePair], encoder: Encoder) -> list[str]:
    """`describe_loss` of a few pairs; "" for those that the template cannot render, too."""
    if not encoder.unwritten.possible:
        return [""] * len(pairs)
    texts = render_block(pairs, encoder, ReadReport())
    losses = iter(_losses([text for text in texts if text is not None], encoder))
    return [describe_loss(next(losses)) if text else "" for text in texts]


def _losses(rendered: Sequence[Rendered], encoder: Encoder) -> list[list[Loss]]:
    """What is lost of each prompt, chosen and rejected."""
    if not encoder.unwritten.possible:
        return [[NOTHING] * 3] * len(rendered)
    texts = [t for r in rendered for t in (r.prompt, *map(encoder.up_to_end, r[1:]))]
    losses = encoder.unwritten.of(texts)
    return [losses[first : first + 3] for first in range(0, len(losses), 3)]


def _cut(
    pair: PreferencePair,
    text: Rendered,
    ids: tuple[list[int], ...],
    encoder: Encoder,
    report: ReadReport,
) -> EncodedPair | None:
    """A pair within max_seq_length: the prompt's front goes first, then the responses' ends."""
    prompt, *responses = ids
    responses = responses[: len(pair.responses)]
    limit = encoder.max_seq_length
    longest = max(map(len, responses))
    if len(prompt) + longest > limit:
        keep = max(limit - longest, min(len(prompt), encoder.max_prompt_length or limit // 2))
        if keep < len(prompt):
            report.notes[f"prompt cut at its front (--max-seq-length {limit})"] += 1
            # Without their BOS some models (Gemma) write nonsense.
            start = prompt[:1] if prompt[0] == encoder.tokenizer.bos_token_id else []
            prompt = start + prompt[len(prompt) - keep + len(start) :]
        room = max(limit - len(prompt), 0)
        for response in responses:
            if len(response) > room:
                report.notes[f"response cut at its end (--max-seq-length {limit})"] += 1
        responses = [response[:room] for response in responses]
    if not all(responses) or not prompt:
        report.leave_out_pair("no token of the prompt or of a response is left")
    elif not pair.is_sft and responses[0] == responses[1]:
        spoken = {encoder.up_to_end(response) for response in text[1:]}
        by_tokens = ids[1] == ids[2] and len(spoken) > 1
        report.leave_out_pair(SAME_TOKENS if by_tokens else SAME_RENDERED)
    else:
        prompt_ids, chosen, rejected = (
            np.fromiter(part, np.int32, len(part))
            for part in (prompt, *responses, *[[]] * pair.is_sft)
        )
        return EncodedPair(prompt_ids, chosen, rejected, pair.location, pair.weight)
    return None


def resolve_thinking(mode: str, pairs: Iterable[PreferencePair]) -> tuple[bool, str | None]:
    """Whether the template's reasoning is on, and a sentence if the data hold both kinds."""
    pairs = list(pairs)
    return thinking_for_counts(mode, count_reasoned(pairs), 2 * len(pairs))


def count_reasoned(pairs: Iterable[PreferencePair]) -> int:
    """How many responses hold reasoning."""
    return sum(bool(split_reasoning(r)[0]) for p in pairs for r in p.responses)


def thinking_for_counts(mode: str, reasoned: int, responses: int) -> tuple[bool, str | None]:
    """`resolve_thinking` from how many responses there are and how many of them hold reasoning."""
    on = bool(reasoned) if mode == "auto" else mode == "on"
    if 0 < reasoned < responses:
        plain, switch = responses - reasoned, "on" if on else "off"
        return on, (
            f"{reasoned:,} responses hold reasoning, {plain:,} do not: rendered with --thinking "
            f"{switch}."
        )
    return on, None
