"""How large a preference so many votes show: of the exact binomial test, two-sided. No mlx."""

from functools import cache
from math import floor, log10
from typing import Any

from orpo_mlx.extras import import_extra

LEVEL = 0.05  # of the test, two-sided
POWER = 0.8
NEAR_POWER = 0.02  # of POWER, for a share that is rounded
FEWEST = 6  # decided prompts with which a share of 100 % is found
ASKED = 0.6  # the share for which the number of prompts is named
MOST = 100_000  # prompts that anybody would judge


def power_of(decided: int, share: float) -> float:
    """How often the test finds a difference where one model is preferred in `share` of prompts."""
    critical = _critical(decided)
    if critical > decided:
        return 0.0
    binom = _scipy().binom
    upper = binom.sf(critical - 1, decided, share)
    return float(upper + binom.cdf(decided - critical, decided, share))


@cache
def share_shown(decided: int) -> float | None:
    """The smallest share that the test finds with a power of 80 %; None: not even 100:0."""
    if power_of(decided, 1.0) < POWER:
        return None
    low, high = 0.5, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if power_of(decided, middle) >= POWER else (middle, high)
    return high


@cache
def prompts_needed(share: float = ASKED) -> int:
    """The fewest decided prompts with which the test finds that share with a power of 80 %."""
    return next(n for n in range(1, MOST) if power_of(n, share) >= POWER)


def what_is_shown(decided: int) -> str:
    """`44 would show 71:29 in four tries of five; 60:40 needs about 200`, as a sentence."""
    share = share_shown(decided)
    needed = f"60:40 needs about {_rounded(prompts_needed()):,}"
    if share is None:
        return f"So few cannot show any difference; {needed}."
    return f"{decided} would show {_as_ratio(decided, share)} in four tries of five; {needed}."


def power_sentence(prompts: int) -> str:
    """The same before a session begins, when ties are not known yet."""
    share = share_shown(prompts)
    needed = f"60:40 needs about {_rounded(prompts_needed()):,}"
    if share is None:
        return (
            f"Fewer than {FEWEST} decided prompts cannot show any difference, and there "
            f"{'is' if prompts == 1 else 'are'} {prompts}; {needed}."
        )
    return (
        f"{prompts} prompts, if all are decided, would show a preference of "
        f"{_as_ratio(prompts, share)} in four tries of five; {needed}."
    )


@cache
def p_value(wins: int, decided: int) -> float:
    """Of `wins` of `decided` if both were preferred equally often; 1 for none decided."""
    return float(_scipy().binomtest(wins, decided).pvalue) if decided else 1.0


def wilson(wins: int, decided: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score; 0 to 1 for none decided."""
    if not decided:
        return 0.0, 1.0
    interval = _scipy().binomtest(wins, decided).proportion_ci(1 - LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


@cache
def _critical(decided: int) -> int:
    """The fewest wins with which the test finds a difference; more than `decided`: none do."""
    return 1 + int(_scipy().binom.isf(LEVEL / 2, decided, 0.5))


def _as_ratio(decided: int, share: float) -> str:
    """`71:29`, with as few digits as leave the power within two points of what is claimed."""
    for digits in range(4):
        rounded = round(share, 2 + digits)
        if abs(power_of(decided, rounded) - POWER) <= NEAR_POWER:
            break
    return f"{100 * rounded:.{digits}f}:{100 - 100 * rounded:.{digits}f}"


def _rounded(number: int) -> int:
    """To two digits."""
    digits = floor(log10(number)) - 1
    return int(round(number, -digits))


def _scipy() -> Any:
    return import_extra("scipy.stats", "judge")
