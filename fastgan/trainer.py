"""Public name of the trainer: `from fastgan.trainer import Trainer`. It lives in fastgan/training."""

from fastgan.training.trainer import Trainer

__all__ = ["Trainer"]
