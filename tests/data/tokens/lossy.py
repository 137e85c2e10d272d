"""Tokenizers that cannot write every text, of each kind that bases have."""

from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from orpo_mlx.data.tokens.encoder import Encoder
from tests import tiny

# Whatever these tokenizers know; é is two bytes.
KNOWN = "hello please check the bill later user assistant café"
SPECIAL = ["<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def bpe(unknown: str | None, *, fused: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=unknown, fuse_unk=fused))
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=[*SPECIAL, " ", "\n"], show_progress=False
    )
    tokenizer.train_from_iterator([KNOWN] * 3, trainer)
    return tokenizer


def marked_spaces() -> Tokenizer:
    """SentencePiece's BPE, which writes a mark before a text and drops what it does not know."""
    tokenizer = bpe(None)
    letters = [letter for letter in sorted({*KNOWN, "\n", "▁"}) if letter != " "]
    vocabulary = {token: n for n, token in enumerate([*SPECIAL, *letters])}
    tokenizer.model = models.BPE(vocabulary, [])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def some_bytes() -> Tokenizer:
    """Byte-level BPE that was trained without the alphabet of all bytes, and drops others."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator([KNOWN, "\n"] * 3, trainer)
    return tokenizer


def unigram(bytes_too: bool = False) -> Tokenizer:
    """SentencePiece's model with or without its fallback on bytes."""
    pieces = [(f"<0x{byte:02X}>", -9.0) for byte in range(256)] if bytes_too else [("\n", -3.0)]
    letters = [(letter, -4.0) for letter in sorted({*KNOWN} - {" "})]
    own = [(token, 0.0) for token in SPECIAL]
    model = models.Unigram([*own, ("▁", -3.0), *letters, *pieces], 0, bytes_too)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Metaspace()]
    )
    return tokenizer


def words() -> Tokenizer:
    vocabulary = {word: n for n, word in enumerate([*SPECIAL, "\n", *dict.fromkeys(KNOWN.split())])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def word_pieces() -> Tokenizer:
    letters = sorted({*KNOWN, "\n"} - {" "})
    vocabulary = {t: n for n, t in enumerate([*SPECIAL, *letters, *(f"##{c}" for c in letters)])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


class Letters(PreTrainedTokenizer):
    """A tokenizer in Python: a token for each letter."""

    def __init__(self, **settings: Any):
        self._letters = {c: n for n, c in enumerate([*SPECIAL, *sorted({*KNOWN, "\n"})])}
        super().__init__(unk_token="<unk>", **settings)

    @property
    def vocab_size(self) -> int:
        return len(self._letters)

    def get_vocab(self) -> dict[str, int]:
        return {**self._letters, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **settings: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self._letters.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return list(self._letters)[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)


LOSSY: dict[str, Callable[[], Tokenizer]] = {
    "BPE": lambda: bpe("<unk>"),
    "BPE, unknown ones fused": lambda: bpe("<unk>", fused=True),
    "BPE that drops": lambda: bpe(None),
    "BPE that drops, with marks": marked_spaces,
    "bytes, not all": some_bytes,
    "unigram": unigram,
    "words": words,
    "word pieces": word_pieces,
}


def encoder_of(tokenizer: Tokenizer | None, template: str | None = tiny.CHATML) -> Encoder:
    """An encoder with ChatML's special tokens; None: the tokenizer in Python."""
    names = {"eos_token": "<|im_end|>", "extra_special_tokens": SPECIAL[1:]}
    plain = (
        Letters(**names)
        if tokenizer is None
        else PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **names)
    )
    plain.chat_template = template
    return Encoder(plain, frozenset([plain.convert_tokens_to_ids("<|im_end|>")]), bool(template))
