"""The error of a picture or page that cannot be embedded."""

from __future__ import annotations


class UnfitPicture(Exception):
    """A picture or page cannot be embedded; its row is quarantined.

    It is not a `VectideError`: processes that decode import only the standard library, numpy, Pillow and pypdfium2.

    Args:
        reason: One of `actors.schema.REASONS`.
        error: Description of the problem.
    """

    def __init__(self, reason: str, error: str) -> None:
        super().__init__(reason, error)
        self.reason = reason
        self.error = error

    def __str__(self) -> str:
        return self.error
