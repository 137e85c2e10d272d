"""The benchmark's results as tables for a terminal."""

from typing import Any

from rich.table import Table

TITLES = {"fast": "fast path", "plain": "plain path", "peer": "mlx-lm-lora"}
COLUMNS = (
    "",
    "s a step",
    "(min-max)",
    "pairs/s",
    "tokens/s",
    "peak GB",
    "of matmul rate",
    "arithmetic",
    "time",
    "memory",
    "loss",
)
NOTE = (
    "arithmetic and time: how many times as much the peer computes and takes; memory: share of the "
    "peer's peak.\nof matmul rate: what the least needed arithmetic is of this machine's float32 "
    "rate. GB are 1e9 bytes."
)


def render_workload(name: str, results: dict[str, Any]) -> Table:
    """One workload: a row for every contestant."""
    table = Table(title=name, title_justify="left", caption_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for contestant, entry in results.items():
        title = f"{TITLES[contestant]} {entry.get('version', '')}".rstrip()
        table.add_row(title, *_cells(entry))
    table.caption = _caption(results)
    return table


def _cells(entry: dict[str, Any]) -> list[str]:
    spread = entry.get("seconds_per_step_spread")
    if why := entry.get("does_not_fit"):
        seconds = ["does not fit", f"({why})"]
    else:
        seconds = [
            _shown(entry, "seconds_per_step", ".2f"),
            "-".join(f"{s:.2f}" for s in spread) if spread else "",
        ]
    return [
        *seconds,
        _shown(entry, "pairs_per_second", ".2f"),
        _shown(entry, "tokens_per_second", ",.0f"),
        _shown(entry, "peak_memory_gb", ".2f"),
        _shown(entry, "matmul_share", ".0%"),
        _shown(entry, "gflop_ratio", ".2f", "x"),
        _shown(entry, "time_ratio", ".2f", "x"),
        _shown(entry, "memory_ratio", ".2f", "x"),
        _shown(entry, "loss", ".6f"),
    ]


def _shown(entry: dict[str, Any], key: str, form: str, unit: str = "") -> str:
    value = entry.get(key)
    return "" if value is None else f"{value:{form}}{unit}"


def _caption(results: dict[str, Any]) -> str:
    """How far the numbers of the fixed batch are apart, and what the processes had in common."""
    lines = []
    for name, entry in results.items():
        for key, what in (("", ""), ("_in_blocks", ", its log-sum-exp added up in blocks")):
            if f"gradient_difference{key}" in entry:
                lines.append(
                    f"{TITLES[name]}{what} against the fast path: loss differs by "
                    f"{entry[f'loss_difference{key}']:.1e}, the adapter's gradient by "
                    f"{entry[f'gradient_difference{key}']:.1e} (in one tensor by "
                    f"{entry[f'tensor_difference{key}']:.1e})."
                )
    for name, entry in results.items():
        if "recurrence_share" in entry:
            share = f"{entry['recurrence_share']:.0%} of the fixed batch's gradient"
            lines.append(f"{TITLES[name]}: the recurrence takes {share}.")
    rates = ", ".join(f"{entry['matmul_gflops']:.0f}" for entry in results.values())
    compiled = next((e["compiled"] for e in results.values() if "compiled" in e), None)
    use = {True: "on", False: "off", None: "unknown"}[compiled]
    lines.append(f"float32 matmul {rates} GFLOP/s; mx.compile {use} in all.")
    return "\n".join(lines)
