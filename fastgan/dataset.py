"""Where pickles of data sets made by earlier versions look for their classes, which live in `fastgan.data`."""

from fastgan.data.dataset import DataError, Dataset, from_array

__all__ = ["DataError", "Dataset", "from_array"]
