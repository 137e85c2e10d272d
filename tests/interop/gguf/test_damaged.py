"""Single faults in a GGUF file, each reported by name; the tokenizers of other pre-tokenizers."""

import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import pytest
import regex
from gguf import GGMLQuantizationType as Kind
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from orpo_mlx.errors import OrpoError
from orpo_mlx.interop.gguf import reader as gguf_reader
from orpo_mlx.interop.gguf.reader import read_gguf
from orpo_mlx.interop.gguf.to_hf import convert_gguf
from tests.interop.gguf.test_to_hf import MERGES, TOKENS, failure, write_tiny_gguf

LONG, ARRAY, TEXT, BYTE = 10, 9, 8, 0  # kinds of values
Header = bytes


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(*values: tuple[str, int, bytes], tensors: bytes = b"", count: int = 0) -> bytes:
    """A header with metadata (key, kind, bytes) and tensors."""
    listed = b"".join(text(key) + struct.pack("<I", kind) + data for key, kind, data in values)
    return b"GGUF" + struct.pack("<IQQ", 3, count, len(values)) + listed + tensors


def array(kind: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + data


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


def number(value: int) -> bytes:
    return struct.pack("<Q", value)


HUGE = 1 << 63
NESTED = array(ARRAY, 1) * 5 + array(BYTE, 0)
DAMAGED: list[tuple[str, Header, str]] = [
    ("counts", b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0), f"it claims to have {HUGE:,} tensors"),
    ("values", b"GGUF" + struct.pack("<IQQ", 3, 0, 100_001) + b"\0" * 2_000_000, "metadata values"),
    ("text", header(("a", TEXT, number(HUGE))), f"it claims to have {HUGE:,} bytes of text"),
    ("array", header(("a", ARRAY, array(LONG, 1 << 40))), "array elements"),
    ("elements", header(("a", ARRAY, array(BYTE, 4_000_001, b"\0" * 4_000_001))), "elements"),
    (
        "together",
        header(*((k, ARRAY, array(BYTE, 2_500_000, b"\0" * 2_500_000)) for k in "ab")),
        "it claims to have 2,500,000 array elements",
    ),
    ("nested", header(("a", ARRAY, NESTED)), "4 arrays deep"),
    ("kind", header(("a", 13, b"\0" * 8)), "a value of kind 13"),
    ("bytes", header(("a", TEXT, number(1) + b"\xff")), "can't decode byte 0xff"),
    ("twice", header(("a", LONG, number(1)), ("a", LONG, number(1))), "'a' is given twice"),
    ("alignment", header(("general.alignment", LONG, number(0))), "general.alignment is 0"),
    ("power", header(("general.alignment", LONG, number(24))), "general.alignment is 24"),
    ("flat", header(tensors=tensor("t", ()), count=1), "a tensor of 0 dimensions"),
    ("deep", header(tensors=tensor("t", (1,) * 5), count=1), "a tensor of 5 dimensions"),
    ("names", header(tensors=tensor("t", (1,)) * 2, count=2), "tensor 't' is given twice"),
    ("shape", header(tensors=tensor("t", (0, 4)) + b"\0" * 64, count=1), "has the shape (4, 0)"),
    ("product", header(tensors=tensor("t", (1 << 40, 1 << 40)), count=1), "it ends inside tensor"),
    ("offset", header(tensors=tensor("t", (1,), offset=HUGE), count=1), "it ends inside tensor t"),
    ("rows", header(tensors=tensor("t", (33,), 2) + b"\0" * 64, count=1), "has the shape (33,)"),
    (
        "overlap",
        header(tensors=tensor("a", (8,)) + tensor("b", (8,), offset=16) + b"\0" * 96, count=2),
        "tensors a and b overlap",
    ),
]


@pytest.mark.parametrize(
    ("content", "message"), [d[1:] for d in DAMAGED], ids=[d[0] for d in DAMAGED]
)
def test_a_damaged_header_is_reported(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(OrpoError) as caught:
        read_gguf(tmp_path / "x.gguf")
    assert str(caught.value).startswith(f"{tmp_path / 'x.gguf'} is broken")
    assert message in str(caught.value)


def test_the_most_that_is_allowed_is_above_what_models_have() -> None:
    """Llama 4: 0.2 million tokens, 0.4 million merges; DeepSeek V3: 1,025 tensors."""
    assert gguf_reader.MAX_ELEMENTS > 3 * (400_000 + 2 * 202_048)
    assert gguf_reader.MAX_ENTRIES > 10 * 1025


def rewritten(source: Path, changes: dict[str, Any]) -> None:
    """The same tensors under metadata that are changed, or left out for None."""
    reader = gguf.GGUFReader(source)
    target = source.with_suffix(".new")
    writer = gguf.GGUFWriter(target, "llama")
    kinds = gguf.GGUFValueType
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")) and (
            field.name not in changes
        ):
            sub = field.types[-1] if field.types[0] == kinds.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub)
    for key, value in changes.items():
        if value is not None:
            writer.add_key_value(key, value, kinds.get_type(value))
    for stored in reader.tensors:
        writer.add_tensor(stored.name, stored.data, raw_dtype=stored.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    target.replace(source)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"llama.block_count": "two"}, "llama.block_count is 'two' (allowed: a whole number from 1 to"),
    ({"llama.block_count": 1 << 30}, "llama.block_count is 1073741824 (allowed: a whole number"),
    ({"llama.block_count": 3}, "tensor blk.2.attn_q.weight is missing"),
    ({"llama.embedding_length": None}, "the metadata has no llama.embedding_length"),
    ({"llama.embedding_length": 96}, "has the shape (64, 64), not (96, 96)"),
    ({"llama.attention.head_count": 3}, "3 heads cannot share 2 heads of keys and values"),
    ({"llama.attention.head_count": 0}, "llama.attention.head_count is 0"),
    ({"llama.attention.key_length": 15}, "rope rotates pairs, but a head has 15 dimensions"),
    ({"llama.rope.freq_base": "ten"}, "llama.rope.freq_base is 'ten' (allowed: a number above 0)"),
    ({"llama.rope.freq_base": float("nan")}, "llama.rope.freq_base is nan"),
    ({"llama.rope.scaling.factor": 8.0}, "llama.rope.scaling.factor is 8.0 (allowed: 1.0, 0.0)"),
    ({"llama.attention.sliding_window": 64}, "llama.attention.sliding_window is 64 (allowed: 0)"),
    ({"tokenizer.ggml.tokens": None}, "the metadata has no tokenizer.ggml.tokens"),
    ({"tokenizer.ggml.tokens": TOKENS + TOKENS[:1]}, "tokenizer.ggml.tokens has the same token"),
    ({"tokenizer.ggml.tokens": [*TOKENS, "more"]}, "tokens have 264 types"),
    ({"tokenizer.ggml.token_type": [1, 3]}, "264 tokens have 2 types"),
    (
        {"tokenizer.ggml.token_type": [1, 99]},
        "token_type is 2 values (allowed: whole numbers below",
    ),
    ({"tokenizer.ggml.merges": ["h zz"]}, "'h zz' does not join two tokens to a third"),
    ({"tokenizer.ggml.eos_token_id": 9999}, "eos_token_id is 9999 (allowed: a token, 0 to 263)"),
    ({"tokenizer.ggml.eos_token_id": None}, "the metadata has no tokenizer.ggml.eos_token_id"),
    ({"tokenizer.ggml.add_bos_token": 1}, "add_bos_token is 1 (allowed: true or false)"),
    ({"tokenizer.chat_template": 7}, "tokenizer.chat_template is 7 (allowed: text)"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=lambda v: next(iter(v)) if v else "")
def test_metadata_that_do_not_fit_are_reported(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    source = tmp_path / "tiny.gguf"
    write_tiny_gguf(source, Kind.F16)
    rewritten(source, changes)
    assert message in failure(source, tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == [source]


def test_all_that_is_wrong_is_reported_at_once(tmp_path: Path) -> None:
    source = tmp_path / "tiny.gguf"
    write_tiny_gguf(source, Kind.F16)
    rewritten(source, {"llama.context_length": 0, "tokenizer.ggml.eos_token_id": -1})
    message = failure(source, tmp_path / "tiny")
    assert len(message.splitlines()) == 3, message


def test_weights_that_are_nan_or_infinite_are_reported(tmp_path: Path) -> None:
    source = tmp_path / "tiny.gguf"
    write_tiny_gguf(source, Kind.Q8_0)
    offset = read_gguf(source).tensors["blk.1.ffn_up.weight"].offset
    content = bytearray(source.read_bytes())
    content[offset : offset + 2] = b"\xff\xff"
    source.write_bytes(content)
    message = failure(source, tmp_path / "tiny")
    assert message == f"{source} is broken: tensor blk.1.ffn_up.weight holds NaN or infinity."
    assert list(tmp_path.iterdir()) == [source]


def test_a_file_without_chat_template_is_converted_without_one(tmp_path: Path) -> None:
    source = tmp_path / "tiny.gguf"
    write_tiny_gguf(source, Kind.F16)
    rewritten(source, {"tokenizer.chat_template": None, "llama.rope.freq_base": None})
    convert_gguf(source, tmp_path / "tiny")
    assert "chat_template" not in (tmp_path / "tiny" / "tokenizer_config.json").read_text()
    assert '"rope_theta": 10000.0' in (tmp_path / "tiny" / "config.json").read_text()


# llama.cpp's own patterns, src/llama-vocab.cpp: LLAMA_VOCAB_PRE_TYPE_LLAMA3, _GPT2 and _SMOLLM
CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
# the last part is what llama.cpp's splitter leaves over
GPT2 = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+"
    r"| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
CUTS: dict[str, list[str]] = {
    "llama-bpe": [
        CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
    "gpt-2": [GPT2],
    "smollm": [r"\p{N}", GPT2],
}
SAMPLES = [
    "hello hello 12345 hell's HELLO'LL  two  spaces\n\n and\ttabs\r\n",
    "x=1;y+=22\nif(a!=b){return 333;}   \n\n",
    "über 春天来的 ١٢٣٤ ½ e\u0301 don't",
]


def pieces(sample: str, patterns: list[str]) -> list[str]:
    parts = [sample]
    for pattern in patterns:
        cut: Callable[[str], list[str]] = lambda part, p=pattern: [  # noqa: E731
            piece for piece in regex.split(f"({p})", part) if piece
        ]
        parts = [piece for part in parts for piece in cut(part)]
    return parts


def merged(piece: str) -> list[str]:
    """BPE by the book: the earliest merge first, as long as there is one."""
    encoder = ByteLevel(add_prefix_space=False, use_regex=False)
    symbols = list(encoder.pre_tokenize_str(piece)[0][0])
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(MERGES)}
    while True:
        pairs = [(ranks[p], i) for i, p in enumerate(pairwise(symbols)) if p in ranks]
        if not pairs:
            return symbols
        _, first = min(pairs)
        symbols[first : first + 2] = ["".join(symbols[first : first + 2])]


@pytest.mark.parametrize("pre", CUTS)
def test_text_is_cut_as_llama_cpp_cuts_it(tmp_path: Path, pre: str) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", Kind.F16, pre=pre)
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "tiny")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tiny" / "tokenizer.json"))
    for sample in SAMPLES:
        expected = [token for piece in pieces(sample, CUTS[pre]) for token in merged(piece)]
        assert tokenizer.encode(sample, add_special_tokens=False).tokens == expected


def test_llama_3_begins_with_its_token_and_takes_whole_words(tmp_path: Path) -> None:
    source = tmp_path / "tiny.gguf"
    write_tiny_gguf(source, Kind.F16, pre="llama-bpe")
    rewritten(source, {"tokenizer.ggml.add_bos_token": None, "tokenizer.ggml.merges": ["h e"]})
    convert_gguf(source, tmp_path / "tiny")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tiny" / "tokenizer.json"))
    assert tokenizer.encode("hello").tokens == ["<|im_start|>", "hello"]
    assert tokenizer.encode("hellohe", add_special_tokens=False).tokens == ["he", *"llo", "he"]
