"""`python -m orpo_mlx`: the command line, or the training child of a supervised run."""

import sys

from orpo_mlx.supervisor.handover import receive_handover

if __name__ == "__main__":
    if handover := receive_handover():
        from orpo_mlx.cli.child import run_as_child

        sys.exit(run_as_child(handover))
    from orpo_mlx.cli.main import main

    main()
