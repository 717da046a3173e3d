"""Where pickles of data sets made by earlier versions look for their classes, which live in `fastgan.data`."""

from fastgan.data.units import Levels

__all__ = ["Levels"]
