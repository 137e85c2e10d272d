from orpo_mlx.doctor.verdict import FAILED, OK, SKIPPED, Check, passed, render_check, render_summary

CHECKS = [
    Check("Python", OK, "CPython 3.12"),
    Check("memory", FAILED, "1.0 GB", "Use a machine with more memory"),
    Check("GPU", SKIPPED, "no GPU here"),
]


def test_a_check_is_a_line_and_a_failed_one_says_what_to_do() -> None:
    assert [render_check(check) for check in CHECKS] == [
        "OK              Python: CPython 3.12",
        "FAILED          memory: 1.0 GB\n"
        "                What to do: Use a machine with more memory",
        "does not apply  GPU: no GPU here",
    ]


def test_color_changes_no_word() -> None:
    colored = render_check(CHECKS[1], color=True)
    assert colored.replace("\x1b[31m", "").replace("\x1b[0m", "") == render_check(CHECKS[1])


def test_the_summary_counts_and_names_what_failed() -> None:
    assert not passed(CHECKS)
    assert passed([CHECKS[0], CHECKS[2]])
    assert render_summary(CHECKS, 1.4) == (
        "3 checks in 1 s: 1 OK, 1 not applicable, 1 failed (memory)."
    )
