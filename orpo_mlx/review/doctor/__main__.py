"""`python -m orpo_mlx.review.doctor`: the checks of the installation, where nothing is installed.

With everything installed, `orpo-mlx doctor` does all of them.
"""

import sys

from orpo_mlx.review.doctor.check import passed, render_check
from orpo_mlx.review.doctor.install import iter_install_checks

checks = list(iter_install_checks())
sys.stdout.write("\n".join(map(render_check, checks)) + "\n")
sys.exit(not passed(checks))
