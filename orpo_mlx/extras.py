"""Libraries that come with an extra: imported when they are needed, named when they are absent."""

from importlib import import_module
from types import ModuleType

from orpo_mlx.errors import OrpoError
from orpo_mlx.install_advice import pip_install


def import_extra(module: str, extra: str) -> ModuleType:
    """The module; raises OrpoError that names the extra to install if it is not there."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise OrpoError(
            f"{package} is needed here and cannot be imported ({error}). "
            f"Install it with: {pip_install(extra)}"
        ) from None
