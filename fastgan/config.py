"""Public name of the options of a run: `from fastgan.config import TrainConfig`. It lives in fastgan/training."""

from fastgan.training.config import TrainConfig
from fastgan.training.device import pick_device

__all__ = ["TrainConfig", "pick_device"]
