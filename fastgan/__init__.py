"""fastgan: fused kernels for training MLP GANs in PyTorch, as functions, drop-in modules and a trainer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastgan import functional, gate, nn
from fastgan.backend import current_backend, set_backend, use_backend
from fastgan.build_info import info
from fastgan.discriminator_step import DiscriminatorStats, DiscriminatorStep
from fastgan.step import StepStats, TrainStep
from fastgan.version import __version__

if TYPE_CHECKING:  # for type checkers and editors; else see `__getattr__`
    from fastgan import data, metrics
    from fastgan.training.trainer import Trainer
    from fastgan.verification import Verification, verify

__all__ = [
    "DiscriminatorStats",
    "DiscriminatorStep",
    "StepStats",
    "TrainStep",
    "Trainer",
    "Verification",
    "__version__",
    "current_backend",
    "data",
    "functional",
    "info",
    "metrics",
    "nn",
    "set_backend",
    "use_backend",
    "verify",
]


# Imported when first asked for: the trainer alone needs the `train` extra.
_LAZY = {
    "Trainer": "fastgan.training.trainer",
    "Verification": "fastgan.verification",
    "data": "fastgan.data",
    "metrics": "fastgan.metrics",
    "verify": "fastgan.verification",
}


def __getattr__(name: str) -> Any:
    """Import the trainer, the data sets, the metrics or the verification."""
    if name not in _LAZY:
        raise AttributeError(f"module 'fastgan' has no attribute {name!r}")
    module = importlib.import_module(_LAZY[name])
    return module if module.__name__ == f"fastgan.{name}" else getattr(module, name)


def _first_use(*use: Any) -> Any:
    return importlib.import_module("fastgan.verification").first_use(*use)


gate.check = _first_use
