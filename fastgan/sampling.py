"""Public name for samples of a run: `from fastgan.sampling import sample_run`. It lives in fastgan/training."""

from fastgan.training.sampling import sample_run, write_samples

__all__ = ["sample_run", "write_samples"]
