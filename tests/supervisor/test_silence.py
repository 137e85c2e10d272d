"""When a silent child counts as hung: by a clock that is given."""

from orpo_mlx.supervisor.silence import LONGEST_TICK, Silence


def ticked(silence: Silence, first: float, last: float, **how: bool) -> None:
    """A look every half second."""
    for half in range(round(2 * first) + 1, round(2 * last) + 1):
        silence.tick(half / 2, **how)


def test_a_child_is_hung_after_the_given_time_and_not_before() -> None:
    silence = Silence(60.0, 0.0)
    ticked(silence, 0, 60)
    assert not silence.too_long
    ticked(silence, 60, 61)
    assert silence.too_long


def test_every_report_begins_the_time_again() -> None:
    silence = Silence(60.0, 0.0)
    for minute in range(10):
        ticked(silence, 50 * minute, 50 * minute + 5)
        silence.heard(50 * minute + 5)
        ticked(silence, 50 * minute + 5, 50 * minute + 50)
    assert not silence.too_long


def test_ten_times_the_longest_gap_so_far_is_waited_for() -> None:
    silence = Silence(60.0, 0.0)
    ticked(silence, 0, 30)
    silence.heard(30)
    silence.heard(31)
    assert silence.limit_seconds == 300.0
    ticked(silence, 31, 331)
    assert not silence.too_long
    ticked(silence, 331, 332)
    assert silence.too_long


def test_a_stopped_child_is_not_silent() -> None:
    silence = Silence(60.0, 0.0)
    ticked(silence, 0, 40)
    ticked(silence, 40, 4000, stopped=True)
    ticked(silence, 4000, 4019)
    assert not silence.too_long
    ticked(silence, 4019, 4021)
    assert silence.too_long


def test_sleep_of_the_machine_or_of_the_parent_does_not_count() -> None:
    silence = Silence(60.0, 0.0)
    ticked(silence, 0, 40)
    silence.tick(40 + 8 * 3600)
    assert not silence.too_long
    ticked(silence, 40 + 8 * 3600, 40 + 8 * 3600 + 20 - LONGEST_TICK)
    assert not silence.too_long
    silence.heard(40 + 9 * 3600)
    assert silence.limit_seconds == 10 * (60 + LONGEST_TICK)
