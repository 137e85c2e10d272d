"""Pairs to token ids, cut to the limits; what happened to them is counted by reason."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from orpo_mlx.data.pairs.load import PreferencePair
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.tokens.encoder import EncodedPair, Encoder
from orpo_mlx.data.tokens.template import RefusedError, Rendered, split_reasoning
from orpo_mlx.errors import OrpoError, collected

CHECKED_BOUNDARIES = 200
# Pairs that are encoded at once.
BLOCK = 250


def encode_pairs(
    pairs: Sequence[PreferencePair],
    encoder: Encoder,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[list[EncodedPair], ReadReport]:
    """All pairs as ids, cut to the limits; raises one OrpoError naming every row refused."""
    encoded: list[EncodedPair] = []
    report = ReadReport()
    for start in range(0, len(pairs), BLOCK):
        block, part = encode_block(pairs[start : start + BLOCK], encoder, compared=not start)
        encoded += [pair for pair in block if pair is not None]
        report.add(part)
        progress(report.pairs)
    if report.refused:
        raise refused_error(report.refused, encoder)
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
        try:
            texts.append(encoder.render_pair(pair, report.notes))
        except RefusedError as error:
            texts.append(None)
            report.refused.append(f"{pair.location}: {error}")
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
    for number, whole in zip(accepted, ids, strict=True):
        pair = pairs[number]
        if pair.extra_messages:
            report.notes["message after the first answer, cut"] += pair.extra_messages
        encoded[number] = _cut(pair.location, whole, encoder, report)
    if compared:
        rendered = rendered[:CHECKED_BOUNDARIES]
        if differing := encoder.count_differing(rendered):
            what = f"pair of the first {len(rendered)} that would be other tokens as one text"
            report.notes[what] = differing
    report.kept = sum(pair is not None for pair in encoded)
    return encoded


def refused_error(problems: list[str], encoder: Encoder) -> OrpoError:
    rows = "1 row" if len(problems) == 1 else f"{len(problems):,} rows"
    how = f" with {encoder.name}" if encoder.has_template else ""
    return collected(f"{rows} cannot be rendered{how}:", problems)


def _cut(
    location: str, ids: tuple[list[int], ...], encoder: Encoder, report: ReadReport
) -> EncodedPair | None:
    """A pair within max_seq_length: the prompt's front goes first, then the responses' ends."""
    prompt, *responses = ids
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
    elif responses[0] == responses[1]:
        report.leave_out_pair("chosen and rejected are the same after rendering and truncation")
    else:
        prompt_ids, chosen, rejected = (
            np.fromiter(part, np.int32, len(part)) for part in (prompt, *responses)
        )
        return EncodedPair(prompt_ids, chosen, rejected, location)
    return None


def resolve_thinking(mode: str, pairs: Iterable[PreferencePair]) -> tuple[bool, str | None]:
    """Whether the template's reasoning is on, and a sentence if the data hold both kinds."""
    pairs = list(pairs)
    return thinking_for_counts(mode, count_reasoned(pairs), 2 * len(pairs))


def count_reasoned(pairs: Iterable[PreferencePair]) -> int:
    """How many responses hold reasoning."""
    return sum(bool(split_reasoning(r)[0]) for p in pairs for r in (p.chosen, p.rejected))


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
