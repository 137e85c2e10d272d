"""Options of a run that is watched, and of the machine that it keeps awake."""

from orpo_mlx.config.groups import Options, option


class SupervisedOptions(Options):
    """How the process that trains is watched."""

    supervise: bool | None = option(
        "Run",
        None,
        "Train in a process of its own and watch it: after a failure of the GPU, a crash or a "
        "lack of memory it goes on from the last checkpoint. Of the command line alone, as are "
        "the four below.",
        shown_default="on with a GPU; off under a launcher",
    )
    hang_minutes: float = option(
        "Run",
        20.0,
        "A supervised process that reports nothing for so long, and for ten times its longest "
        "pause so far, is ended and started again.",
        unit="minutes",
        gt=0,
    )
    segment_steps: int | None = option(
        "Run",
        None,
        "End the supervised process every N steps and start another: for machines that fail "
        "after hours of work.",
        unit="steps",
        ge=1,
    )
    cooldown: float = option(
        "Run", 0.0, "Pause between two such segments.", unit="seconds", ge=0, le=86_400
    )
    display_sleep: bool = option(
        "Run",
        False,
        "Put the display to sleep at the first step (macOS): nothing is drawn meanwhile.",
    )
