import re
import sys

import pytest

from orpo_mlx.errors import OrpoError
from orpo_mlx.extras import import_extra
from orpo_mlx.install_advice import pip_install


def test_a_module_that_is_there_is_given() -> None:
    assert import_extra("json.decoder", "check") is sys.modules["json.decoder"]


def test_a_module_that_is_absent_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(OrpoError, match="ftfy is needed here.*" + re.escape(pip_install("check"))):
        import_extra("ftfy", "check")
