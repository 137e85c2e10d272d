"""Keys of tokens: of each answer and position its own, and the same ever after."""

import mlx.core as mx

from orpo_mlx.sampling.keys import answer_seed, token_key


def test_every_answer_and_every_position_has_a_key_of_its_own() -> None:
    seeds = [answer_seed(s, p, n) for s in (0, 1) for p in (7, 8) for n in range(4)]
    assert len(set(seeds)) == 16
    keys = {tuple(token_key(seed, position).tolist()) for seed in seeds for position in range(50)}
    assert len(keys) == 16 * 50


def test_a_key_is_what_it_was() -> None:
    """Files of answers are gone on with by later versions."""
    assert answer_seed(3, 2**63 + 5, 1) == 18174625293607251591
    assert token_key(18174625293607251591, 2).tolist() == [950546652, 1172252337]


def test_tokens_are_drawn_by_their_probabilities() -> None:
    """Among 4,000 draws of 0.5, 0.3, 0.2 a count is within 5 of its standard deviations."""
    logprobs = mx.log(mx.array([[0.5, 0.3, 0.2]]))
    drawn = [
        mx.random.categorical(logprobs, key=token_key(answer_seed(0, 1, n // 20), n % 20)).item()
        for n in range(4000)
    ]
    for token, share in enumerate((0.5, 0.3, 0.2)):
        deviation = (4000 * share * (1 - share)) ** 0.5
        assert abs(drawn.count(token) - 4000 * share) < 5 * deviation
