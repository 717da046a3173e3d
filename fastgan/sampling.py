"""Public name for samples of a run: `from fastgan.sampling import sample_run`. It lives in fastgan/training."""

from fastgan.training.run_samples import sample_run
from fastgan.training.sample_files import write_samples

__all__ = ["sample_run", "write_samples"]
