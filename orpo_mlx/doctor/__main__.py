"""`python -m orpo_mlx.doctor`: the checks of the installation, where nothing is installed.

With everything installed, `orpo-mlx doctor` does all of them.
"""

import sys

from orpo_mlx.doctor.install import iter_install_checks
from orpo_mlx.doctor.verdict import passed, render_check

checks = list(iter_install_checks())
sys.stdout.write("\n".join(map(render_check, checks)) + "\n")
sys.exit(not passed(checks))
