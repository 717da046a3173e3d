"""For pickles of data sets that name this module; it is `fastgan.data`."""

from fastgan.data.dataset import DataError, Dataset

__all__ = ["DataError", "Dataset"]
