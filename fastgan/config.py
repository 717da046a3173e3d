"""Public name of the options of a run: `from fastgan.config import TrainConfig`. It lives in fastgan/training."""

from fastgan.training.config import TrainConfig

__all__ = ["TrainConfig"]
