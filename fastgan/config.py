"""The options of a training run, by the name that their module has for users."""

from fastgan.training.config import TrainConfig

__all__ = ["TrainConfig"]
