"""`fastgan.Trainer` by the name that its module has for users."""

from fastgan.training.trainer import Trainer

__all__ = ["Trainer"]
