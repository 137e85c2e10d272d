"""Why a row has no text: an error of its own, which the commands collect."""


class RefusedError(Exception):
    """The template cannot render this row."""
