"""For pickles of data sets that name this module; it is `fastgan.data`."""

from fastgan.data.units import Levels

__all__ = ["Levels"]
