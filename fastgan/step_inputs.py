"""What a step refuses of its inputs, before anything is changed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastgan import checks, layers
from fastgan.step_options import AUTOCAST_DTYPES, DiscriminatorOptions


def check_trainable(name: str, optimizer: Optimizer) -> None:
    """ValueError where an optimizer has nothing to update."""
    if not any(p.requires_grad for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(f"{name} must hold a parameter that requires grad, but all of its are frozen")


def check_batch(name: str, batch: int, options: DiscriminatorOptions) -> None:
    """ValueError unless a batch holds samples, in whole packs."""
    if batch == 0:
        raise ValueError(f"{name} must hold at least one sample, but its batch is empty")
    if batch % options.pac:
        raise ValueError(f"{name} must have a batch that is a multiple of pac={options.pac}, not {batch}")


def check_fit(
    name: str, value: Tensor, module: nn.Module, network: str, options: DiscriminatorOptions, pac: int = 1
) -> None:
    """RuntimeError unless a value has the dtype and the width of a network's first Linear layer, where that can be
    known; of `pac` samples, with their labels beside."""
    weight = layers.first_weight(module)
    if weight is None:
        return
    width, classes = value.shape[-1], options.num_classes
    if pac * (width + classes) != weight.shape[1]:
        labels = f" with its {classes} columns of labels" if classes else ""
        packed = f", {pac} samples packed together" if pac > 1 else ""
        raise RuntimeError(
            f"the {network}'s first weight of shape {tuple(weight.shape)} must have {pac * (width + classes)} "
            f"columns, as wide as {name}{labels}{packed}"
        )
    check_dtype(name, value, network, weight, options)


def check_dtype(name: str, value: Tensor, network: str, weight: Tensor | None, options: DiscriminatorOptions) -> None:
    """RuntimeError unless a value has the dtype of a network's first weight, where that is known, or is cast."""
    if weight is not None and AUTOCAST_DTYPES[options.precision] is None:
        checks.same_dtype(name, value, f"the {network}'s parameters", weight)


def check_labels(
    name: str, labels: Tensor | None, like: Tensor, options: DiscriminatorOptions, samples: str = "real"
) -> Tensor | None:
    """Labels as int64, a number for each of the samples (..., batch, data); one batch of them serves all.

    Raises:
        TypeError, ValueError, RuntimeError: they are no such labels.
    """
    classes = options.num_classes
    if classes == 0:
        if labels is not None:
            raise ValueError(f"{name} were given, but num_classes is 0: the step is not conditional")
        return None
    if labels is None:
        raise ValueError(f"{name} are needed: the step is conditional on num_classes={classes}")
    checks.tensor(name, labels)
    if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, not {labels.dtype}")
    checks.same_device(name, labels, samples, like)
    if labels.shape == like.shape[-2:-1]:
        labels = labels.expand(like.shape[:-1])
    if labels.shape != like.shape[:-1]:
        wanted = f"({like.shape[-2]},)"
        if like.dim() == 3:
            wanted += f" or {tuple(like.shape[:-1])}"
        raise ValueError(f"{name} must have shape {wanted}, not {tuple(labels.shape)}")
    # On a device the comparison below would wait for it; there LabelCheck or the engine's kernels look.
    labels = labels.long()
    if labels.device.type == "cpu" and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(f"{name} must be in [0, {classes}), but they span [{labels.min()}, {labels.max()}]")
    return labels


def latent_size(generator: nn.Module, classes: int) -> int:
    """The width of the noise that a generator takes, beside its labels.

    Raises:
        ValueError: the generator does not tell.
    """
    for module in generator.modules():
        if isinstance(module, nn.Linear):
            # A parametrized weight is not looked at: that would compute it, and move spectral_norm's iteration on.
            weight = module._parameters.get("weight", module.__dict__.get("weight"))
            return (module.in_features if weight is None else weight.shape[1]) - classes
    raise ValueError("the latent size cannot be read off the generator (it has no nn.Linear): pass noise")
