"""Write docs/cli.md."""

from pathlib import Path

from orpo_mlx.cli.docs import render_cli_docs

if __name__ == "__main__":
    file = Path(__file__).parents[1] / "docs" / "cli.md"
    file.write_text(render_cli_docs(), encoding="utf-8")
    print(file)
