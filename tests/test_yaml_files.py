"""YAML within bounds: what is in them is PyYAML's own reading, what is not is refused at once."""

from pathlib import Path

import pytest
import yaml

from orpo_mlx.cli.main import run
from orpo_mlx.errors import OrpoError
from orpo_mlx.interop.hub.uploads import PathScrubber
from orpo_mlx.run_folder.folder import CONFIG
from orpo_mlx.run_folder.settings import load_run_config
from orpo_mlx.yaml_files import (
    MAX_BYTES,
    MAX_LEVELS,
    MAX_NODES,
    LimitError,
    parse_yaml,
    read_yaml,
)
from tests.alarm import no_hang

GOOD = [
    "",
    "# nothing\n",
    "steps: 3\ndata: [a, b]\nlearning_rate: 2.0e-5\n",
    "base: &base {rank: 8, alpha: 16}\nrun:\n  <<: *base\n  rank: 4\n",
    "a: &x [1, 2]\nb: *x\nc: *x\n",
    "date: 2026-01-31\ntext: |\n  two\n  lines\n",
]


def bomb(levels: int) -> str:
    """Ten times as much with each level."""
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join([*lines, f"data: *l{levels - 1}", ""])


def merged(levels: int) -> str:
    lines = ["l0: &l0 {k0: x}"]
    for n in range(1, levels):
        lines.append(f"l{n}: &l{n} {{a: *l{n - 1}, b: *l{n - 1}, <<: *l{n - 1}}}")
    return "\n".join([*lines, f"template_args: *l{levels - 1}", ""])


BAD = {
    "nine levels of aliases": (bomb(9), "its aliases written out"),
    "merge keys": (merged(30), "its aliases written out"),
    "itself": ("template_args: &a {x: *a}", "holds itself"),
    "itself in a list": ("data: &a [*a]", "holds itself"),
    "brackets": ("data: " + "[" * 20_000, "nested more than 50 levels"),
    "deep": ("data: " + "[" * 60 + "]" * 60, "nested more than 50 levels"),
    "deep by aliases": (
        "\n".join(["a0: &a0 x", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 60))]),
        "nested more than 50 levels",
    ),
    "many": ("data: [" + "x, " * MAX_NODES + "]", "its aliases written out"),
}


@pytest.mark.parametrize("text", GOOD)
def test_what_is_in_bounds_is_read_as_ever(text: str) -> None:
    assert parse_yaml(text).content == yaml.safe_load(text)


@pytest.mark.parametrize(("text", "why"), BAD.values(), ids=BAD)
def test_what_is_not_is_refused_at_once(text: str, why: str) -> None:
    with no_hang(), pytest.raises(LimitError, match=why):
        parse_yaml(text)


def test_the_bounds_are_met_exactly() -> None:
    items = MAX_NODES - 3  # the mapping, its key and the list
    assert len(parse_yaml("data: [" + "x, " * items + "]").content["data"]) == items
    with pytest.raises(LimitError):
        parse_yaml("data: [" + "x, " * (items + 1) + "]")
    levels = MAX_LEVELS - 2  # the mapping, and the scalar inside
    assert parse_yaml("data: " + "[" * levels + "x" + "]" * levels).content
    with pytest.raises(LimitError):
        parse_yaml("data: " + "[" * (levels + 1) + "x" + "]" * (levels + 1))


@pytest.mark.parametrize("size", [MAX_BYTES, MAX_BYTES + 1])
def test_a_file_has_a_size(tmp_path: Path, size: int) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("a: b\n#".ljust(size, "x"))
    if size <= MAX_BYTES:
        assert read_yaml(file).content == {"a": "b"}
    else:
        with pytest.raises(LimitError, match="larger than 1 MB"):
            read_yaml(file)


def test_what_has_no_end_is_not_read_to_it() -> None:
    with no_hang(), pytest.raises(LimitError, match="larger than 1 MB"):
        read_yaml(Path("/dev/zero"))


@pytest.mark.parametrize(("text", "why"), BAD.values(), ids=BAD)
def test_a_file_of_settings_ends_in_one_message(
    tmp_path: Path, text: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with no_hang():
        assert run(["train", "--config", str(file), "--output", str(tmp_path / "o")]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"Error: --config {file}: too large for settings: ")
    assert why in message and message.count("\n") == 1


@pytest.mark.parametrize(("text", "why"), BAD.values(), ids=BAD)
def test_so_does_a_run_that_came_from_elsewhere(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / CONFIG).write_text(text)
    with no_hang(), pytest.raises(OrpoError, match=why):
        load_run_config(tmp_path)
    scrub = PathScrubber(tmp_path, "base")
    with no_hang(), pytest.raises(OrpoError, match=why):
        scrub(tmp_path / CONFIG, "")


def test_so_does_a_value_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    given = "a=" + "[" * 60 + "]" * 60
    with no_hang():
        assert run(["train", "--model", "m", "--data", "d", "--template-arg", given]) == 1
    assert "Error: " in capsys.readouterr().err
