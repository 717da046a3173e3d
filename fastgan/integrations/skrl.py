"""Adversarial imitation by skrl's agent AMP, with its discriminator on fastgan's step.

from fastgan.integrations.skrl import accelerate

with accelerate():
    trainer.train()
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor

from fastgan.integrations.acceleration import Acceleration, known_package
from fastgan.integrations.skrl_discriminator import Amp, AsEver, Settings, chain_of

__all__ = ["accelerate"]

SUPPORTED = ("2.1.0", "2.1.1")  # whose AMP.update calls the discriminator as _StandIn expects
DEVICES = ("cpu", "cuda")
_LOSS = "Loss / Discriminator loss"  # what skrl tracks it as
_SCALES = {name: f"discriminator_{name}_scale" for name in Settings._fields}


def accelerate() -> Acceleration:
    """Make the discriminator's updates of `skrl.agents.torch.amp.AMP` native, and those of agents derived from it.

    An update is one call of `fastgan.DiscriminatorStep`: the cross-entropy of motions, and of what the policy did now
    and before; the penalty on the gradient at the motions, which is R1 with `r1_gamma` four times
    discriminator_gradient_penalty_scale; the decay of the weights and the regularization of the logits, which are
    weight decays of its Adam. The policy, the value and the rewards stay skrl's own, and so does the order of all draws
    but those of Dropout. What skrl tracks as the discriminator's loss is the same number.

    skrl has one Adam for the three networks. Here the discriminator has one of its own, with skrl's learning rate,
    which a scheduler may change. Adam looks at each element alone, so that this is the same update, but for rounding.
    After each update of the agent skrl's optimizer has the moments: its checkpoints are the same, and an agent goes on
    with or without this. Adversarial motion priors are those of Peng et al. 2021 (arXiv:2104.02180).

    What would not be the same update is left to skrl, with one warning an agent that says why: `grad_norm_clip` over 0
    (0.5 unless set, and 0 in skrl's HumanoidAMP), since that is the norm of the three networks together; mixed
    precision; several processes; a discriminator that does more than call Linear layers, activations and Dropout one
    after the other, such as one with functional activations; an optimizer that is not skrl's. An unknown version of
    skrl runs as ever, with one warning.

    Returns:
        An Acceleration, which undoes this: a context manager, or call its `undo`.

    Raises:
        ImportError: skrl is not installed.
    """
    package = known_package("skrl", SUPPORTED.__contains__, " and ".join(SUPPORTED), "skrl>=2.1.0,<=2.1.1")
    acceleration = Acceleration()
    if package is None:
        return acceleration
    agent = importlib.import_module("skrl.agents.torch.amp").AMP
    if not hasattr(agent.update, "_accelerated_by_fastgan"):  # by one that is still on
        acceleration._replace(agent, "update", functools.partial(_updating, package.config))
    return acceleration


def _updating(config: Any, before: Callable[..., None]) -> Callable[..., None]:
    known: WeakKeyDictionary[Any, Amp] = WeakKeyDictionary()
    told: WeakSet[Any] = WeakSet()

    @functools.wraps(before)
    def update(self: Any, *, timestep: int, timesteps: int) -> None:
        try:
            amp = known[self] = _amp_of(config, self, known.get(self))
        except AsEver as reason:
            if self not in told:
                told.add(self)
                warnings.warn(
                    f"skrl updates the discriminator of this AMP agent as ever, because {reason}", stacklevel=2
                )
            before(self, timestep=timestep, timesteps=timesteps)
            return
        with _standing_in(self, amp):
            before(self, timestep=timestep, timesteps=timesteps)

    update._accelerated_by_fastgan = True  # type: ignore[attr-defined]
    return update


def _amp_of(config: Any, agent: Any, known: Amp | None) -> Amp:
    """The updates of an agent's discriminator: those that are known, where they serve.

    Raises:
        AsEver: with the reason why they are skrl's.
    """
    cfg, model = agent.cfg, agent.discriminator
    if config.torch.is_distributed:
        raise AsEver("it runs in several processes")
    if cfg.mixed_precision:
        raise AsEver("mixed_precision is on")
    if cfg.grad_norm_clip > 0:
        raise AsEver(
            f"grad_norm_clip is {cfg.grad_norm_clip}, the norm of the gradients of policy, value and discriminator "
            "together; 0 is off"
        )
    sample = agent.memory.get_tensor_by_name("amp_observations")[0]
    if sample.device.type not in DEVICES:
        raise AsEver(f"it is on {sample.device.type}")
    others = {id(p) for network in (agent.policy, agent.value) for p in network.parameters()}
    if any(id(p) in others for p in model.parameters()):
        raise AsEver("the discriminator shares parameters with the policy or the value")
    settings = Settings(**{name: getattr(cfg, scale) for name, scale in _SCALES.items()})
    chain = chain_of(model, sample)
    if known is not None and known.serves(model, chain, settings, agent.optimizer):
        return known
    return Amp(model, chain, settings, agent.optimizer)


class _StandIn:
    """In the place of the discriminator while skrl's update runs.

    That calls it once without gradients, for the rewards, and then three times for each batch: for what the policy did,
    for what it did before and for the motions. Its logits are constants to skrl, whose discriminator's loss is scaled
    by 0.

    Attributes:
        losses: of the updates so far, 0-d tensors.
    """

    def __init__(self, model: Any, amp: Amp) -> None:
        self._model, self._amp = model, amp
        self._given: list[Tensor] = []
        self.losses: list[Tensor] = []

    def act(self, inputs: dict[str, Any], *, role: str = "") -> tuple[Tensor, dict[str, Any]]:
        if not torch.is_grad_enabled():
            result: tuple[Tensor, dict[str, Any]] = self._model.act(inputs, role=role)
            return result
        given: Tensor = inputs["observations"]
        self._given.append(given)
        if len(self._given) == 3:
            self.losses.append(self._amp.update(*self._given))
            self._given.clear()
        return given.new_zeros(len(given), 1), {}


@contextmanager
def _standing_in(agent: Any, amp: Amp) -> Iterator[None]:
    """An agent whose discriminator is updated by `amp`, while the block runs."""
    cfg, model, track = agent.cfg, agent.discriminator, vars(agent).get("track_data")
    scales = {scale: getattr(cfg, scale) for scale in _SCALES.values()}
    stand_in = _StandIn(model, amp)
    track_data = agent.track_data

    def tracked(tag: str, value: float) -> None:
        if tag == _LOSS:
            value = float(sum(stand_in.losses)) / (cfg.learning_epochs * cfg.mini_batches)
        track_data(tag, value)

    amp.take_over()
    try:
        agent.discriminator, agent.track_data = stand_in, tracked
        for scale in scales:
            setattr(cfg, scale, 0.0)
        yield
    finally:
        agent.discriminator = model
        for scale, value in scales.items():
            setattr(cfg, scale, value)
        if track is None:
            del agent.track_data
        else:
            agent.track_data = track
        amp.hand_back()
