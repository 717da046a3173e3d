"""fastgan: fused kernels for training MLP GANs in PyTorch, as functions, drop-in modules and a trainer."""

from __future__ import annotations

from typing import Any

from fastgan import functional, nn
from fastgan.backend import current_backend, set_backend, use_backend
from fastgan.build_info import info
from fastgan.step import StepStats, TrainStep
from fastgan.version import __version__

__all__ = [
    "StepStats",
    "TrainStep",
    "Trainer",
    "__version__",
    "current_backend",
    "data",
    "functional",
    "info",
    "metrics",
    "nn",
    "set_backend",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    """Import the trainer and the data loaders when first asked for: they alone need the `train` extra."""
    import importlib

    if name == "Trainer":
        return importlib.import_module("fastgan.training.trainer").Trainer
    if name in ("data", "metrics"):
        return importlib.import_module(f"fastgan.{name}")
    raise AttributeError(f"module 'fastgan' has no attribute {name!r}")
