"""Microbenchmarks of every op and whole-step benchmarks, against plain PyTorch: `python -m bench`."""
