"""The trainer: networks from options, the loop, and the run folder. Most of its modules need the `train` extra.

`fastgan.Trainer` and the command line are built of it; the library never imports it.
"""
