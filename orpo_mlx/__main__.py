"""`python -m orpo_mlx`: the command line."""

from orpo_mlx.cli.main import main

if __name__ == "__main__":
    main()
