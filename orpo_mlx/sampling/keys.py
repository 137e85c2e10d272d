"""Random keys of answers: each its own, whatever is generated next to it."""

from hashlib import blake2b

import mlx.core as mx


def answer_key(seed: int, prompt: int, number: int) -> mx.array:
    """The key of the answer of that number to the prompt of that hash, in a run of that seed."""
    digest = blake2b(f"{seed} {prompt} {number}".encode(), digest_size=8).digest()
    return mx.random.key(int.from_bytes(digest, "little"))
