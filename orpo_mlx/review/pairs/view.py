"""A pair as the model gets it: its tokens as text, each with its role in the loss."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from orpo_mlx.data.pairs.load import Message, PreferencePair
from orpo_mlx.data.tokens.encode import UNWRITTEN, encode_block, losses_of
from orpo_mlx.data.tokens.encoder import EncodedPair, Encoder
from orpo_mlx.data.tokens.rendering.refused import RefusedError

Role = Literal["prompt", "chosen", "rejected", "cut"]
# special: a control token of the template; text: one that came with a message's text;
# speaker: who speaks next, which is not a token.
Mark = Literal["", "special", "text", "speaker"]
Run = tuple[Sequence[int], Role]  # consecutive ids of one role
BROKEN = "\ufffd"


class Span(NamedTuple):
    """Consecutive tokens of one role, as text; each control token is a span of its own."""

    text: str
    role: Role
    mark: Mark = ""
    ids: tuple[int, ...] = ()


class PairView(NamedTuple):
    """The spans of a pair. Those that are not cut hold the very ids that the model gets."""

    location: str
    prompt: tuple[Span, ...]
    chosen: tuple[Span, ...]
    rejected: tuple[Span, ...]
    notes: tuple[str, ...] = ()
    left_out: str = ""  # why the model does not get this pair

    @property
    def parts(self) -> dict[str, tuple[Span, ...]]:
        """The three parts by name."""
        return {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected}

    @property
    def tokens(self) -> dict[str, int]:
        """How many tokens there are of each role."""
        counts = Counter({"prompt": 0, "chosen": 0, "rejected": 0, "cut": 0})
        for spans in self.parts.values():
            for span in spans:
                counts[span.role] += len(span.ids)
        return dict(counts)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        parts = {name: [span._asdict() for span in spans] for name, spans in self.parts.items()}
        facts = {"notes": list(self.notes), "left_out": self.left_out, "tokens": self.tokens}
        return {"place": self.location, **parts, **facts}


def view_pair(pair: PreferencePair, encoder: Encoder) -> PairView:
    """A pair as the encoder makes it: rendered, encoded, cut."""
    try:
        rendered = encoder.render_pair(pair, Counter())
    except RefusedError as error:
        return view_messages(pair)._replace(left_out=str(error))
    prompt_ids, *answers = encoder.encode(pair, rendered)
    (kept,), report = encode_block([pair], encoder)
    texts = (rendered.chosen, rendered.rejected)
    full = (prompt_ids, *map(partial(_full_answer, encoder), answers, texts))
    reader = TokenReader(encoder.tokenizer)
    spans = [list(reader.spans(runs)) for runs in _runs(full, kept)]
    if not pair.raw:
        messages = [pair.messages, [pair.chosen], [pair.rejected]]
        spans = [_with_origin(*part) for part in zip(spans, messages, strict=True)]
    prompt, chosen, rejected = map(tuple, spans)
    (lost,) = losses_of([pair], encoder)
    counts = {lost if what == UNWRITTEN else what: n for what, n in report.notes.items()}
    notes = [*_weight(pair), *(what if n == 1 else f"{n} x {what}" for what, n in counts.items())]
    unwritten = [why.removeprefix(f"{pair.location}: ") for why in report.unwritten]
    left_out = "; ".join([*report.pairs_left_out, *unwritten])
    return PairView(pair.location, prompt, chosen, rejected, tuple(notes), left_out)


def view_messages(pair: PreferencePair) -> PairView:
    """A pair as its row holds it, before any template."""
    tools = [Span("tools", "prompt", "speaker"), Span(_as_text(pair.tools), "prompt")]
    spans = [span for message in pair.messages for span in _message_spans(message, "prompt")]
    return PairView(
        pair.location,
        (*tools, *spans) if pair.tools else tuple(spans),
        tuple(_message_spans(pair.chosen, "chosen")),
        tuple(_message_spans(pair.rejected, "rejected")),
        tuple(_weight(pair)),
    )


def _weight(pair: PreferencePair) -> list[str]:
    """A note on the weight of a pair that has one."""
    return [f"weight {pair.weight:g}"] if pair.weight != 1 else []


class TokenReader:
    """The text of token ids, one by one where they hold whole characters."""

    def __init__(self, tokenizer: Any):
        added: Mapping[int, Any] = tokenizer.added_tokens_decoder
        self._tokenizer = tokenizer
        self._special = {i for i, token in added.items() if token.special}
        self._special.update(tokenizer.all_special_ids)

    def spans(self, runs: Sequence[Run]) -> Iterator[Span]:
        """The spans of consecutive runs."""
        for ids, role in runs:
            held = Span("", role)
            for text, group in self._pieces(ids):
                if group[0] in self._special:
                    yield from (held,) if held.ids else ()
                    yield Span(text, role, "special", group)
                    held = Span("", role)
                else:
                    held = Span(held.text + text, role, "", held.ids + group)
            yield from (held,) if held.ids else ()

    def _pieces(self, ids: Sequence[int]) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Text and ids of as few tokens as make whole characters."""
        before: tuple[int, ...] = ()
        start = 0
        for end in range(1, len(ids) + 1):
            group = tuple(ids[start:end])
            text = self._text_after(before, group)
            last = end == len(ids) or ids[end] in self._special
            if group[0] in self._special or last or not text.endswith(BROKEN):
                yield text, group
                # What follows half a character cannot be read after it.
                before = () if text.endswith(BROKEN) else group
                start = end

    def _text_after(self, before: tuple[int, ...], group: tuple[int, ...]) -> str:
        """Text of tokens in their context: some tokenizers drop a space at the very beginning."""
        return self._decode(before + group)[len(self._decode(before)) :]

    def _decode(self, ids: tuple[int, ...]) -> str:
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _runs(full: tuple[list[int], ...], kept: EncodedPair | None) -> list[list[Run]]:
    """Prompt and responses as runs of what is kept and what is cut."""
    if kept is None:
        return [[(ids, "cut")] for ids in full]
    prompt, chosen, rejected = full
    gone = len(prompt) - len(kept.prompt)
    # A prompt that loses its front keeps its BOS.
    start = 0 if prompt[gone:] == kept.prompt.tolist() else 1
    front: list[Run] = [(prompt[:start], "prompt"), (prompt[start : start + gone], "cut")]
    return [
        [*front, (prompt[start + gone :], "prompt")],
        [(chosen[: len(kept.chosen)], "chosen"), (chosen[len(kept.chosen) :], "cut")],
        [(rejected[: len(kept.rejected)], "rejected"), (rejected[len(kept.rejected) :], "cut")],
    ]


def _full_answer(encoder: Encoder, ids: list[int], text: str) -> list[int]:
    """An answer with the text after an end token in its middle, which the model never sees."""
    all_ids = encoder.ids(text)
    beyond = all_ids[len(ids) :]
    visible = encoder.tokenizer.decode(beyond).strip()
    return all_ids if visible and all_ids[: len(ids)] == ids else ids


def _with_origin(spans: list[Span], messages: Sequence[Message]) -> list[Span]:
    """The spans with those control tokens marked that are inside a message's text."""
    full = "".join(span.text for span in spans)
    inside, position = [], 0
    for message in messages:
        text = message["content"].strip()
        if (start := full.find(text, position)) >= 0:
            position = start + len(text)
            inside.append((start, position))
    marked, start = [], 0
    for span in spans:
        end = start + len(span.text)
        own = span.mark and any(a <= start and end <= b for a, b in inside)
        marked.append(span._replace(mark="text") if own else span)
        start = end
    return marked


def _message_spans(message: Message, role: Role) -> Iterator[Span]:
    """Who speaks, the text, and whatever else the message holds, as JSON."""
    others = {key: value for key, value in message.items() if key not in ("role", "content")}
    if message["content"] or not others:
        yield Span(str(message["role"]), role, "speaker")
        yield Span(str(message["content"]), role)
    for key, value in others.items():
        yield Span(f"{message['role']}, {key}", role, "speaker")
        yield Span(_as_text(value), role)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
