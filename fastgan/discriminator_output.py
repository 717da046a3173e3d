"""How a discriminator ends: whether its output is a logit or a probability, and the loss of either.

The tutorials' discriminators end in nn.Sigmoid and are trained with BCELoss. Taken for a logit, that output would be
squashed twice, in silence. That is so of the cross-entropy losses; to any other a Sigmoid is an activation.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan import functional, layers, reference
from fastgan.nn import is_fused, run_in_turn
from fastgan.step_options import DiscriminatorOptions

# They hand on the values that they are given, by these forwards: another one, of a subclass or patched, may not.
_RESHAPES = {kind: kind.forward for kind in (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout)}
_CALL = nn.Module.__call__
# Probabilities, or logarithms of them, that no loss here is of.
_REFUSED = (nn.LogSigmoid, nn.Hardsigmoid, nn.Softmax, nn.LogSoftmax, nn.Softmin)
# What autograd records of views and reshapes.
_VIEWS = (
    "View",
    "UnsafeView",
    "ReshapeAlias",
    "Squeeze",
    "Unsqueeze",
    "Expand",
    "Alias",
    "Clone",
    "Select",
    "T",
    "ToCopy",
)


# The losses of which the sigmoid of a logit is part.
_CROSS_ENTROPY = tuple(name for name, loss in reference.GAN_LOSSES.items() if loss.discriminator == "bce")
_OF_PROBABILITY = tuple(name for name, loss in reference.GAN_LOSSES.items() if loss.scores_probability)


class DiscriminatorOutput:
    """A discriminator, as a loss meets it.

    Attributes:
        is_probability: whether `run` returns probabilities, of which BCELoss is the loss.
        text: what `plan` says of it; empty where its output is a logit like any other.
    """

    def __init__(self, discriminator: nn.Module, loss: str) -> None:
        self._discriminator, self._loss = discriminator, loss
        self._before: list[nn.Module] | None = None
        self.is_probability = False
        self.text = ""
        if loss not in _CROSS_ENTROPY:
            return
        if not any(layers.global_hooks()):
            self._before = _before_sigmoid(discriminator)
        if self._before is not None:
            self.text = "D's last Sigmoid is folded into the loss"
        elif isinstance(_last(_unwrapped(discriminator)), nn.Sigmoid):
            self.is_probability = True
            self.text = "BCELoss on D's own output, since its last Sigmoid has hooks or is wrapped"

    def run(self, input: Tensor) -> Tensor:
        """D's logits; or, where `is_probability` is set then, what it returns."""
        if self._before is not None:
            logits: Tensor = run_in_turn(self._discriminator, self._before, input)
            return logits
        output: Tensor = self._discriminator(input)
        if self._loss in _CROSS_ENTROPY:
            self.is_probability = self.is_probability or _is_of_sigmoid(output)
        return output

    def own(self, output: Tensor) -> Tensor:
        """D's own output, of what `run` returned: its Sigmoid included, where that is folded into the loss."""
        return output if self._before is None else torch.sigmoid(output)

    def discriminator_loss(self, real: Tensor, fake: Tensor, options: DiscriminatorOptions) -> Tensor:
        """Of what `run` returned for real data and fakes."""
        if self.is_probability:
            return _cross_entropy(real, options.real_target) + _cross_entropy(fake, options.fake_target)
        kind = reference.GAN_LOSSES[self._loss].discriminator
        return functional.discriminator_loss(
            real, fake, kind=kind, real_target=options.real_target, fake_target=options.fake_target
        )

    def generator_loss(self, fake: Tensor, real: Tensor | None) -> Tensor:
        """Of what `run` returned for fakes, and for real data where the loss pairs them."""
        if self.is_probability:
            target, negated = {"non_saturating": (1.0, False), "minimax": (0.0, True)}[self._loss]
            loss = _cross_entropy(fake, target)
            return -loss if negated else loss
        return functional.generator_loss(fake, real, kind=self._loss)

    def score(self, output: Tensor) -> Tensor:
        """The batch mean of D's probability, or of its output; in float32 where what `run` returned has 16 bits."""
        output = output.detach()
        output = output.float() if output.dtype.itemsize == 2 else output
        is_logit = self._loss in _OF_PROBABILITY and not self.is_probability
        return (torch.sigmoid(output) if is_logit else output).mean()


def check(discriminator: nn.Module, loss: str) -> None:
    """ValueError where a discriminator's last layer makes no logit, and the loss is of one."""
    last = _last(discriminator) if loss in _OF_PROBABILITY else None
    if isinstance(last, _REFUSED):
        raise ValueError(
            f"discriminator must end in a layer that makes a logit, or in nn.Sigmoid, not in nn.{type(last).__name__}"
        )


def warn_of_hidden_sigmoid(discriminator: nn.Module, loss: str) -> None:
    """Warn of a fused Sequential that ends in a Sigmoid inside a module of another class, where autograd does not tell
    whether it makes the output, and the loss would take that for a logit."""
    discriminator = _unwrapped(discriminator)
    if isinstance(discriminator, nn.Sequential) or loss not in _CROSS_ENTROPY:
        return
    if any(is_fused(module) and isinstance(_last(module), nn.Sigmoid) for module in discriminator.modules()):
        warnings.warn(
            f"the discriminator, a {type(discriminator).__name__}, holds a fused Sequential that ends in nn.Sigmoid: "
            "where that makes its output, leave the Sigmoid away, since the output is taken for a logit",
            stacklevel=3,
        )


def _before_sigmoid(module: nn.Module) -> list[nn.Module] | None:
    """What an nn.Sequential that ends in a Sigmoid calls but for that, in turn; None for any other module."""
    if not layers.is_sequential(module):
        return None
    children: list[Any] = list(module._modules.values())
    for i in range(len(children) - 1, -1, -1):
        before, child, after = children[:i], children[i], children[i + 1 :]
        if _reshapes(child):
            if _may_look(child):  # and would see logits
                return None
            continue
        if type(child) is nn.Sigmoid:
            return [*before, *after] if layers.refusal(child) is None else None
        inside = _before_sigmoid(child)
        return None if inside is None else [*before, *inside, *after]
    return None


def _last(module: nn.Module | None) -> nn.Module | None:
    """The last layer of a tree of nn.Sequential that does more than reshape; None where it cannot be known."""
    if not isinstance(module, nn.Sequential):
        return None
    for child in reversed(list(module._modules.values())):
        if not _reshapes(child):
            return _last(child) if isinstance(child, nn.Sequential) else child
    return None


def _reshapes(module: nn.Module | None) -> bool:
    kind: Any = type(module)
    if kind.__call__ is not _CALL or (isinstance(module, nn.Dropout) and not layers.is_idle_dropout(module)):
        return False
    if isinstance(module, nn.Sequential):
        return kind.forward in layers.SEQUENTIAL_FORWARDS and all(map(_reshapes, module._modules.values()))
    return any(isinstance(module, base) and kind.forward is own for base, own in _RESHAPES.items())


def _may_look(module: nn.Module) -> bool:
    """Whether something of the user's sees what a layer that hands on, or one inside it, is given."""
    return any(layers.has_hooks(part) or "forward" in part.__dict__ for part in module.modules())


def _unwrapped(module: nn.Module) -> nn.Module:
    """What torch.compile or DataParallel was given."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def _is_of_sigmoid(output: Any) -> bool:
    """Whether autograd says that a Sigmoid made an output, perhaps reshaped since."""
    node = output.grad_fn if isinstance(output, Tensor) else None
    while node is not None:
        name = type(node).__name__.partition("Backward")[0]
        if name == "Sigmoid":
            return True
        if name not in _VIEWS:
            return False
        node = node.next_functions[0][0]
    return False


def _cross_entropy(probability: Tensor, target: float) -> Tensor:
    # As a user of autocast writes it: BCELoss refuses 16 bits there.
    with torch.autocast(probability.device.type, enabled=False):
        probability = probability.float() if probability.dtype.itemsize == 2 else probability
        return F.binary_cross_entropy(probability, torch.full_like(probability, target))
