"""Random keys of answers: each its own, whatever is generated next to it."""

from hashlib import blake2b

import mlx.core as mx

_ODD = 0x9E3779B97F4A7C15  # of splitmix64: positions of one answer have keys far apart


def answer_seed(seed: int, prompt: int, number: int) -> int:
    """64 bits for the answer of that number to the prompt of that hash, in a run of that seed."""
    digest = blake2b(f"{seed} {prompt} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def token_key(answer: int, position: int) -> mx.array:
    """The key of an answer's token at a position: the same however long the answer may get."""
    return mx.random.key((answer + position * _ODD) % 2**64)
