"""The error of data that cannot be used."""

from __future__ import annotations


class DataError(ValueError):
    """A data set cannot be used: one sentence that names the file, the place in it and the fault."""
