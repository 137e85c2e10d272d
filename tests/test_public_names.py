"""What of a name may leave this machine."""

import pytest

from orpo_mlx.public_names import public_name


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("user/set", "user/set"),
        ("user/set:2", "user/set:2"),
        ("acme/pairs.jsonl:2", "pairs.jsonl:2"),
        ("/home/ann/acme:2", "acme:2"),
        ("acme/*.jsonl", "*.jsonl"),
    ],
)
def test_only_names_of_the_hub_leave_this_machine_whole(name: str, public: str) -> None:
    assert public_name(name) == public
