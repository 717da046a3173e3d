"""fastgan: fused kernels for training MLP GANs in PyTorch, as functions, drop-in modules and a trainer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastgan import functional, nn
from fastgan.backend import current_backend, set_backend, use_backend
from fastgan.build_info import info
from fastgan.step import StepStats, TrainStep
from fastgan.version import __version__

if TYPE_CHECKING:  # for type checkers and editors; else see `__getattr__`
    from fastgan import data, metrics
    from fastgan.training.trainer import Trainer

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


# Imported when first asked for: the trainer alone needs the `train` extra.
_LAZY = {"Trainer": "fastgan.training.trainer", "data": "fastgan.data", "metrics": "fastgan.metrics"}


def __getattr__(name: str) -> Any:
    """Import the trainer, the data sets or the metrics."""
    if name not in _LAZY:
        raise AttributeError(f"module 'fastgan' has no attribute {name!r}")
    module = importlib.import_module(_LAZY[name])
    return module.Trainer if name == "Trainer" else module
