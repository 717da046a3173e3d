"""The discriminator of skrl's AMP agent, updated by a `fastgan.DiscriminatorStep`: where that does the same, and how.

skrl's loss is s (1/2 (BCE of fakes + BCE of motions) + l |w|^2 + g E|dD/dx|^2 + d sum |W|^2), with w the weight of the
last module and W those of all Linear layers. With c = s / 2 that is c (BCE + BCE + 2 l |w|^2 + 2 g E|dD/dx|^2 + 2 d sum
|W|^2): the step's own loss, R1 with gamma / 2 = 2 g, and an Adam with a weight decay of 4 d, or 4 (d + l) for w. Adam
divides the gradient's mean m by sqrt(v) + eps, so that the factor c changes nothing but eps, which is divided by it; m
is kept divided by c, and v by c^2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from fastgan import layers
from fastgan.discriminator_step import DiscriminatorStep

# Nothing in them looks across the batch or keeps note of it: skrl runs its three batches one by one, the step two.
_LAYERS = (nn.Linear, nn.Dropout, nn.Identity, *layers.ACTIVATIONS)
# What skrl leaves as it is, and an optimizer of the user's may have: of these the update would be another one.
_OPTIONS = ("weight_decay", "amsgrad", "maximize", "capturable", "differentiable", "fused")
_MOMENTS = {"exp_avg": 1, "exp_avg_sq": 2}  # by the power of c that they are kept divided by


class AsEver(Exception):
    """The discriminator is to be updated by skrl itself; the message says why."""


class Settings(NamedTuple):
    """The scales of an AMP_CFG: s, l, g and d of the module's docstring."""

    loss: float
    logit_regularization: float
    gradient_penalty: float
    weight_decay: float

    def check(self) -> None:
        """AsEver where a step cannot have them."""
        if not self.loss > 0:
            raise AsEver(f"discriminator_loss_scale is {self.loss}, which is not over 0")
        for name in self._fields[1:]:
            if not getattr(self, name) >= 0:
                raise AsEver(f"discriminator_{name}_scale is {getattr(self, name)}, which is under 0")


class Amp:
    """The updates of one agent's discriminator."""

    def __init__(self, model: nn.Module, chain: list[nn.Module], settings: Settings, optimizer: Optimizer) -> None:
        """Make the step.

        Args:
            model: the discriminator as skrl has it.
            chain: the layers that its output is made by, as `chain_of` finds them.
            settings: of the loss.
            optimizer: skrl's, which the policy and the value are updated by too.

        Raises:
            AsEver: this would not be skrl's update.
        """
        settings.check()
        self._chain, self._settings, self._theirs = chain, settings, optimizer
        self._group = _group_of(optimizer, list(model.parameters()))
        self._factor = settings.loss / 2
        self._decays = _decays(model, settings)
        by_decay: dict[float, list[nn.Parameter]] = {}
        for parameter, decay in self._decays:
            by_decay.setdefault(decay, []).append(parameter)
        self._optimizer = Adam(
            [{"params": parameters, "weight_decay": decay} for decay, parameters in by_decay.items()],
            lr=self._group["lr"],
            betas=self._group["betas"],
            eps=self._group["eps"] / self._factor,
        )
        self.step = DiscriminatorStep(
            nn.Sequential(*chain), self._optimizer, r1_gamma=4 * float(settings.gradient_penalty)
        )

    def serves(self, model: nn.Module, chain: list[nn.Module], settings: Settings, optimizer: Optimizer) -> bool:
        """Whether it is what would be made of these, so that its plan serves again."""
        if optimizer is not self._theirs or settings != self._settings or [*map(id, chain)] != [*map(id, self._chain)]:
            return False
        group = _group_of(optimizer, list(model.parameters()))
        own = self._optimizer.param_groups
        return (
            group is self._group
            and all(group["betas"] == each["betas"] for each in own)
            and all(group["eps"] / self._factor == each["eps"] for each in own)
            and [(id(p), decay) for p, decay in _decays(model, settings)] == [(id(p), d) for p, d in self._decays]
        )

    def take_over(self) -> None:
        """Take the moments from skrl's optimizer."""
        for parameter, _ in self._decays:
            theirs = self._theirs.state.get(parameter)
            if theirs:
                _copy(theirs, self._optimizer, parameter, 1 / self._factor)
            else:
                self._optimizer.state.pop(parameter, None)

    def hand_back(self) -> None:
        """Give the moments back, so that skrl's checkpoints have them and skrl may go on with them."""
        for parameter, _ in self._decays:
            ours = self._optimizer.state.get(parameter)
            if ours:
                _copy(ours, self._theirs, parameter, self._factor)

    def update(self, policy: Tensor, replay: Tensor, motion: Tensor) -> Tensor:
        """One update.

        Args:
            policy: (batch, data), what the policy did.
            replay: (replay batch, data), what it did before.
            motion: (motion batch, data), what is to be imitated.

        Returns:
            The loss as skrl has it, before the update: a 0-d tensor.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = self._group["lr"]  # a scheduler may have changed it
        with torch.no_grad():
            decay = sum(0.5 * decay * p.square().sum() for p, decay in self._decays if decay)
        statistics = self.step.step(motion.detach(), torch.cat([policy.detach(), replay.detach()]))
        return self._factor * (statistics.d_loss + statistics.penalty + decay)


@torch.no_grad()
def chain_of(model: Any, sample: Tensor) -> list[nn.Module]:
    """The layers that an output of the discriminator is made by, each of what the one before returned.

    They are found by watching a run: whatever else a model's `compute` does to its input or output makes other tensors.

    Args:
        model: has skrl's `act`.
        sample: (batch, data).

    Raises:
        AsEver: the output is made by something else, too.
    """
    if any(layers.has_hooks(module) for module in model.modules()):
        raise AsEver("the discriminator has hooks")
    leaves = [module for module in model.modules() if not any(True for _ in module.children())]
    for leaf in leaves:
        if type(leaf) not in _LAYERS:
            raise AsEver(f"the discriminator has a layer {type(leaf).__name__}")
    watch = _Watch(sample.clone())
    handles = [handle for leaf in leaves for handle in watch.hook(leaf)]
    try:
        with torch.random.fork_rng([sample.device] if sample.device.type == "cuda" else []):
            output, _ = model.act({"observations": watch.value}, role="discriminator")
    finally:
        for handle in handles:
            handle.remove()
    if not watch.is_value(output):
        raise AsEver("the discriminator's compute does more than to call its layers one after the other")
    last = watch.chain[-1] if watch.chain else None
    if type(last) is not nn.Linear or last.out_features != 1:
        raise AsEver("the discriminator does not end in a Linear layer with one output")
    if {id(p) for layer in watch.chain for p in layer.parameters()} != {id(p) for p in model.parameters()}:
        raise AsEver("the discriminator has parameters that its output is not made by")
    return watch.chain


class _Watch:
    """Follows a value from layer to layer.

    Attributes:
        value: what the layers so far have made of the input.
        chain: these layers.
    """

    def __init__(self, value: Tensor) -> None:
        self.value, self.chain = value, list[nn.Module]()
        self._version, self._is_whole = value._version, True
        self._kept: list[Tensor] = []  # no other tensor gets the memory of one that is kept

    def hook(self, layer: nn.Module) -> Iterator[Any]:
        yield layer.register_forward_pre_hook(self._before)
        yield layer.register_forward_hook(self._after)

    def is_value(self, tensor: Any) -> bool:
        """Whether a tensor is the value, untouched: itself or a view of the same shape."""
        return (
            self._is_whole
            and isinstance(tensor, Tensor)
            and tensor.data_ptr() == self.value.data_ptr()
            and (tensor.shape, tensor.stride(), tensor.dtype)
            == (self.value.shape, self.value.stride(), self.value.dtype)
            and tensor._version == self._version
        )

    def _before(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._is_whole = len(inputs) == 1 and self.is_value(inputs[0])

    def _after(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._kept.append(self.value)
        self.value, self._version = output, output._version
        self.chain.append(layer)


def _group_of(optimizer: Optimizer, parameters: list[nn.Parameter]) -> dict[str, Any]:
    """The group of skrl's optimizer that has the discriminator's parameters."""
    if type(optimizer) is not Adam:
        raise AsEver(f"the agent's optimizer is {type(optimizer).__name__}, not Adam")
    for group in optimizer.param_groups:
        if {id(p) for p in parameters} <= {id(p) for p in group["params"]}:
            for option in _OPTIONS:
                if group.get(option):
                    raise AsEver(f"the agent's optimizer has {option}={group[option]}")
            return group
    raise AsEver("the agent's optimizer has the discriminator's parameters in no one group")


def _decays(model: nn.Module, settings: Settings) -> list[tuple[nn.Parameter, float]]:
    """Each parameter with its weight decay."""
    modules = list(model.modules())
    decays = dict.fromkeys(map(id, model.parameters()), 0.0)
    for module in modules:
        if isinstance(module, nn.Linear):
            decays[id(module.weight)] += 4 * settings.weight_decay
    if settings.logit_regularization:
        weight = getattr(modules[-1], "weight", None)
        if id(weight) not in decays:
            raise AsEver("the discriminator's last module has no weight, which skrl looks for")
        decays[id(weight)] += 4 * settings.logit_regularization
    return [(parameter, decays[id(parameter)]) for parameter in model.parameters()]


@torch.no_grad()
def _copy(state: dict[str, Any], optimizer: Optimizer, parameter: nn.Parameter, factor: float) -> None:
    """Copies a parameter's state to another optimizer, its gradients multiplied by a factor."""
    own = optimizer.state.get(parameter)
    if own:
        for name, value in state.items():
            own[name].copy_(value)
    else:
        own = optimizer.state[parameter] = {name: value.clone() for name, value in state.items()}
    for name, power in _MOMENTS.items():
        own[name].mul_(factor**power)
