"""CTGAN (the package `ctgan`, and SDV's synthesizers that are built on it) on fastgan's training step.

from fastgan.integrations.ctgan import accelerate

with accelerate():
    model = ctgan.CTGAN(epochs=30)
    model.fit(table, discrete_columns)
    synthetic = model.sample(1000)
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastgan.functional import segmented_activation
from fastgan.integrations import ctgan_training
from fastgan.integrations.acceleration import Acceleration, known_package

__all__ = ["Acceleration", "accelerate"]

SUPPORTED = "0.12"  # whose fit is what ctgan_training.fit does
DEVICES = ("cpu", "cuda")  # on the others draws in float64 may be missing


def _is_known(version: str) -> bool:
    return version == SUPPORTED or version.startswith(SUPPORTED + ".")


def accelerate() -> Acceleration:
    """Make `ctgan.CTGAN.fit` and `sample` fast, and with them whatever calls them, such as SDV's CTGANSynthesizer.

    Nothing else changes: the same classes, arguments, columns, attributes and saved models. The critic's update is one
    native call (`fastgan.DiscriminatorStep`, with the penalty and packing), without a backward pass through the
    generator. The activations of all columns are one op (`fastgan.functional.segmented_activation`). Conditions and
    rows are drawn for a whole batch at once. A step waits for no device. The mixtures of the columns are fitted on all
    cores. The draws come in another order, so a seed gives other samples than without it, of the same distribution (Xu
    et al. 2019, arXiv:1907.00503).

    A model whose networks are not ctgan's own (its Generator, Discriminator, DataSampler or DataTransformer replaced,
    or a method of CTGAN overridden), or that is on another device than a CPU or CUDA, is trained by ctgan as ever. So
    is everything where the version of ctgan is not a known one, with one warning.

    Returns:
        An Acceleration, which undoes this: a context manager, or call its `undo`.

    Raises:
        ImportError: ctgan is not installed.
    """
    package = known_package("ctgan", _is_known, SUPPORTED, "ctgan>=0.12,<0.13")
    acceleration = Acceleration()
    if package is None:
        return acceleration
    own = _Own(importlib.import_module("ctgan.synthesizers.ctgan"))
    if own.is_accelerated():
        return acceleration  # by one that is still on; this one has nothing to undo
    acceleration._replace(own.ctgan, "fit", functools.partial(_fitting, own))
    acceleration._replace(own.ctgan, "sample", _sampling)
    acceleration._replace(own.ctgan, "_apply_activate", functools.partial(_activating, own))
    acceleration._replace(own.transformer, "fit", functools.partial(_fitting_transformer, own))
    own.remember()
    return acceleration


# What a subclass or a patch may have changed, by which a model would no longer be trained as ctgan 0.12 does.
_METHODS = {
    "ctgan": ("_apply_activate", "_cond_loss", "_gumbel_softmax", "_validate_discrete_columns", "_validate_null_data"),
    "discriminator": ("__init__", "forward", "calc_gradient_penalty"),
    "generator": ("__init__", "forward"),
    "residual": ("__init__", "forward"),
    "sampler": ("__init__", "sample_condvec", "sample_data", "dim_cond_vec", "_random_choice_prob_index"),
    "transformer": ("_fit_continuous", "_fit_discrete", "transform"),
}


class _Own:
    """ctgan's own classes, and their methods as they were when it was accelerated."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.ctgan, self.transformer = module.CTGAN, module.DataTransformer
        self.generator, self.discriminator, self.residual = module.Generator, module.Discriminator, module.Residual
        self.sampler = module.DataSampler
        self.optimizer, self.gumbel_softmax = module.optim.Adam, module.CTGAN._gumbel_softmax
        self._methods: dict[tuple[str, str], object] = {}

    def remember(self) -> None:
        """Takes the methods for what they are now."""
        for role, names in _METHODS.items():
            for name in names:
                self._methods[role, name] = getattr(getattr(self, role), name)

    def is_accelerated(self) -> bool:
        return hasattr(self.ctgan.fit, "_accelerated_by_fastgan")

    def is_as_it_was(self, model: Any) -> bool:
        """Whether a model is trained as ctgan does: nobody has put another class or method in the place of one."""
        if model._device.type not in DEVICES:
            return False
        module = self.module
        classes = (module.Generator, module.Discriminator, module.Residual, module.DataSampler, module.DataTransformer)
        if classes != (self.generator, self.discriminator, self.residual, self.sampler, self.transformer):
            return False
        if module.optim.Adam is not self.optimizer:
            return False
        for (role, name), method in self._methods.items():
            owner = type(model) if role == "ctgan" else getattr(self, role)
            if getattr(owner, name) is not method or (role == "ctgan" and name in vars(model)):
                return False
        return True


def _fitting(own: _Own, before: Callable[..., Any]) -> Callable[..., Any]:
    random_state = importlib.import_module("ctgan.synthesizers.base").random_state
    accelerated = random_state(functools.partial(ctgan_training.fit, own.module))

    @functools.wraps(before)
    def fit(self: Any, train_data: Any, discrete_columns: Any = (), epochs: int | None = None) -> None:
        run = accelerated if own.is_as_it_was(self) else before
        run(self, train_data, discrete_columns, epochs)

    fit._accelerated_by_fastgan = True  # type: ignore[attr-defined]
    return fit


def _sampling(before: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(before)
    def sample(self: Any, n: int, condition_column: Any = None, condition_value: Any = None) -> Any:
        with torch.no_grad():
            return before(self, n, condition_column, condition_value)

    return sample


def _activating(own: _Own, before: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(before)
    def _apply_activate(self: Any, data: Tensor) -> Tensor:
        segments = ctgan_training.segments_of(self._transformer)
        if segments is None or type(self)._gumbel_softmax is not own.gumbel_softmax:
            activated: Tensor = before(self, data)
            return activated
        activated = segmented_activation(data, *segments, tau=ctgan_training.TAU)
        if activated.isnan().any():
            raise ValueError("gumbel_softmax returning NaN.")  # as ctgan says it
        return activated

    return _apply_activate


def _fitting_transformer(own: _Own, before: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(before)
    def fit(self: Any, raw_data: Any, discrete_columns: Any = ()) -> None:
        if type(self) is own.transformer and len(raw_data) >= ctgan_training.WORTH_PROCESSES:
            with ctgan_training.columns_at_once(self, raw_data, discrete_columns):
                before(self, raw_data, discrete_columns)
        else:
            before(self, raw_data, discrete_columns)

    return fit
