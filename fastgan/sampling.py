"""Samples of a run folder, by the name that their module has for users."""

from fastgan.training.sampling import sample_run, write_samples

__all__ = ["sample_run", "write_samples"]
