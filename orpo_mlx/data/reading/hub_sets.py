"""A split of a data set on the Hub, through Hugging Face datasets and its cache."""

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from orpo_mlx.data.reading.splits import pick_split
from orpo_mlx.errors import OrpoError
from orpo_mlx.extras import import_extra

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def is_hub_id(name: str) -> bool:
    """Whether a name has the form USER/NAME."""
    return HUB_ID.fullmatch(name) is not None


def load_split(
    name: str,
    *,
    splits: Sequence[str],
    split: str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> tuple[str, list[Path]]:
    """A split's name and its Arrow files in the cache, downloaded unless they are there.

    Raises OrpoError, its text without the name of the data set.
    """
    datasets = import_extra("datasets", "hub")
    log("looking on the Hub")
    # It logs every attempt, with URLs; the outcome is reported below.
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)
    try:
        builder = datasets.load_dataset_builder(name, subset, revision=revision)
        _check_cached(builder, revision, log)
        if not builder.info.splits:  # not in the data set's card: known once it is downloaded
            builder.download_and_prepare()
        chosen = pick_split(list(builder.info.splits), splits, split, log)
        builder.download_and_prepare()
        table = builder.as_dataset(split=chosen)
    except OrpoError:
        raise
    except Exception as error:  # of datasets, huggingface_hub, httpx, pyarrow and the disk
        raise OrpoError(_reason(error)) from None
    return chosen, [Path(file["filename"]) for file in table.cache_files]


def _check_cached(builder: Any, revision: str | None, log: Callable[[str], None]) -> None:
    """Log that a copy in the cache replaces the Hub; of another revision it must not."""
    if not type(builder).__module__.startswith("datasets.packaged_modules.cache."):
        return
    commit = str(builder.hash)
    if revision not in (None, "main", commit):
        raise OrpoError(
            f"revision {revision} is not available: the Hub cannot be reached, and the cache holds "
            f"revision {commit}. Name that one, or none."
        )
    log(f"the Hub cannot be reached: using the copy in the cache, revision {commit}")


def _reason(error: Exception) -> str:
    """What went wrong, and what to do about it."""
    cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" else None
    text = " ".join(str(cause or error).split())
    if isinstance(error, ConnectionError):
        return (
            f"the Hub cannot be reached, and the cache does not hold it ({text}). Try again with a "
            "network connection and HF_HUB_OFFLINE unset."
        )
    if type(error).__name__ == "DatasetNotFoundError":
        return f"{text} A private data set needs: hf auth login"
    if re.search(r"(?i)\bconfig(s|uration|urations)?\b", text):  # datasets' word for a subset
        return f"{text} Name a subset with --subset."
    return f"cannot be loaded: {text or type(error).__name__}"
