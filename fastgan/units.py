"""Where pickles of data sets made by earlier versions look for their classes, which live in `fastgan.data`."""

from fastgan.data.units import Levels, unscale

__all__ = ["Levels", "unscale"]
