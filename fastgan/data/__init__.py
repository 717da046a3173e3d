"""Data sets: real data and toy mixtures, from their names or from files, as one kind of Dataset."""

from fastgan.data.dataset import DataError, Dataset, from_array
from fastgan.data.loading import BUILT_IN, load
from fastgan.data.toys import digits, grid25, ring8

__all__ = ["BUILT_IN", "DataError", "Dataset", "digits", "from_array", "grid25", "load", "ring8"]
