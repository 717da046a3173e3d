"""Public name of the trainer: `from fastgan.trainer import Trainer`. It lives in fastgan/training."""

from fastgan.training.checkpoint import CheckpointError
from fastgan.training.finite import NonFiniteError
from fastgan.training.trainer import Trainer

__all__ = ["CheckpointError", "NonFiniteError", "Trainer"]
