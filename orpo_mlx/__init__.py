"""Align language models on your own Mac with ORPO."""

__version__ = "0.2.0"

_API = {
    "train": "orpo_mlx.training.loop",
    "evaluate": "orpo_mlx.training.evaluate",
    "load_pairs": "orpo_mlx.data.pairs.load",
    "TrainConfig": "orpo_mlx.config.train",
    "EvaluateConfig": "orpo_mlx.config.train",
    "OrpoError": "orpo_mlx.errors",
}
__all__ = ["__version__", "events", *_API]


def __getattr__(name: str) -> object:
    """Load a name of the Python API on first use, so that `import orpo_mlx` stays light."""
    from importlib import import_module

    if name == "events":
        return import_module("orpo_mlx.events")
    if name not in _API:
        raise AttributeError(f"module 'orpo_mlx' has no attribute {name!r}")
    from orpo_mlx import backend

    backend.prepare()
    return getattr(import_module(_API[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
