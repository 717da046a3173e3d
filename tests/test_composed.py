"""The composed step with penalties: what shares a forward pass, layers that look across a batch, second derivatives."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conformance import ACTIVATION_MODULES, assert_close_in_float64
from plain_step import BATCH, DATA, LATENT, Plain, adam, inputs, networks, state_of, twin
from step_cases import PENALTIES
from torch import Tensor, nn
from torch.optim import SGD

from fastgan import DiscriminatorStep, TrainStep, composed, reference
from fastgan.nn import fuse
from fastgan.step_options import DiscriminatorOptions, StepOptions

pytestmark = pytest.mark.usefixtures("one_thread")

spectral_norm = nn.utils.parametrizations.spectral_norm


def of_layers(*layers: nn.Module) -> nn.Sequential:
    return fuse(nn.Sequential(*layers).double())


# A bias before BatchNorm has no gradient but rounding, nor has D's last one with some losses.
NORMALISED: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm": lambda: of_layers(
        nn.Linear(DATA, 8, bias=False), nn.BatchNorm1d(8), nn.SiLU(), nn.Dropout(0.2), nn.Linear(8, 1, bias=False)
    ),
    "LayerNorm": lambda: of_layers(nn.Linear(DATA, 8), nn.LayerNorm(8), nn.LeakyReLU(0.2), nn.Linear(8, 1, bias=False)),
    "spectral_norm": lambda: of_layers(
        spectral_norm(nn.Linear(DATA, 8)), nn.Tanh(), spectral_norm(nn.Linear(8, 1, bias=False))
    ),
    "BatchNorm, Sigmoid": lambda: of_layers(
        nn.Linear(DATA, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1), nn.Sigmoid()
    ),
}
WITH_PENALTY = [name for name in PENALTIES if name != "none"]


def losses_of(network: str) -> list[str]:
    return [loss for loss in reference.GAN_LOSSES if loss != "minimax" or network.endswith("Sigmoid")]


# All pairs of network, loss and penalty: of fewer networks than losses or penalties, each meets every one of them.
NORMALISED_PAIRS = [
    (network, loss, penalty)
    for i, loss in enumerate(reference.GAN_LOSSES)
    for k, penalty in enumerate(WITH_PENALTY)
    for networks_of in [[name for name in NORMALISED if loss in losses_of(name)]]
    for network in [networks_of[(i + k) % len(networks_of)]]
]


@pytest.mark.parametrize(("network", "loss", "penalty"), NORMALISED_PAIRS)
def test_normalised_discriminators_with_penalties(backend: str, network: str, loss: str, penalty: str) -> None:
    """Running statistics and iterations too: they move once for each pass that the plain loop has."""
    options = {"loss": loss, "d_steps": 2, **PENALTIES[penalty]}
    torch.manual_seed(0)
    pair = networks()[0], NORMALISED[network]()
    trainers = [twin(kind, *pair, adam, **options) for kind in (TrainStep, Plain)]
    for i in range(4):  # in the last a penalty of every third step is due again
        given = inputs(options)
        results = []
        for trainer in trainers:
            torch.manual_seed(i)
            results.append(tuple(trainer.step(*given)))
        assert_close_in_float64(*results, bound=1e-9)
    assert_close_in_float64(*map(state_of, trainers), bound=1e-9)
    assert "composed" in trainers[0].plan


@pytest.mark.deep
@pytest.mark.parametrize("network", NORMALISED)
def test_the_full_product_of_normalised_discriminators(compiled: None, network: str) -> None:
    for loss, penalty in itertools.product(losses_of(network), WITH_PENALTY):
        if (network, loss, penalty) not in NORMALISED_PAIRS:
            test_normalised_discriminators_with_penalties("cpu", network, loss, penalty)


def test_each_pair_of_network_loss_and_penalty_is_there() -> None:
    found = {pair for case in NORMALISED_PAIRS for pair in itertools.combinations(case, 2)}
    losses = {(network, loss) for network in NORMALISED for loss in losses_of(network)}
    assert losses | set(itertools.product(NORMALISED, WITH_PENALTY)) <= found
    assert set(itertools.product(reference.GAN_LOSSES, WITH_PENALTY)) <= found


def test_the_plan_names_what_a_penalty_cannot_run_natively(compiled: None) -> None:
    trainer = twin(TrainStep, networks()[0], NORMALISED["LayerNorm"](), adam, r1_gamma=1.0)
    assert "discriminator[1] is a LayerNorm" in trainer.plan


@pytest.mark.parametrize(("penalty", "passes"), [("none", 2), ("R1", 2), ("R1, R2", 2), ("GP", 3), ("all", 3)])
def test_loss_and_penalties_share_the_forward_pass(backend: str, penalty: str, passes: int) -> None:
    """Seen from a hook, D of more than one fused run."""
    discriminator = NORMALISED["LayerNorm"]()
    seen: list[int] = []
    discriminator[1].register_forward_hook(lambda module, given, output: seen.append(len(output)))
    DiscriminatorStep(discriminator, adam(discriminator.parameters()), **PENALTIES[penalty]).step(
        *torch.randn(2, BATCH, DATA, dtype=torch.float64)
    )
    assert seen == [BATCH] * passes


def test_halves_go_through_a_fused_discriminator_at_once(compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """But where one alone has a penalty."""
    seen: list[int] = []
    run = composed.DiscriminatorOutput.run

    def looking(self: Any, input: Tensor) -> Tensor:
        seen.append(len(input))
        return run(self, input)

    monkeypatch.setattr(composed.DiscriminatorOutput, "run", looking)
    for penalty, rows in (("none", [12]), ("R1", [6, 6]), ("lazy R2", [6, 6]), ("R1, R2", [12]), ("GP", [12, 6])):
        seen.clear()
        discriminator = networks()[1]
        step = DiscriminatorStep(discriminator, adam(discriminator.parameters()), engine=False, **PENALTIES[penalty])
        step.step(*torch.randn(2, BATCH, DATA, dtype=torch.float64))
        assert seen == rows


SMOOTH = ("tanh", "sigmoid", "softplus", "silu", "gelu", "elu")
# Of every activation all penalties together; each alone of a smooth one and one that is not.
OF_GRADIENTS = [(activation, "all") for activation in (*SMOOTH, "leaky_relu", "identity")]
OF_GRADIENTS += itertools.product(("tanh", "leaky_relu"), ("R1", "R1, R2", "GP"))


@pytest.mark.parametrize(("activation", "penalty"), OF_GRADIENTS)
def test_the_gradients_of_penalties(backend: str, activation: str, penalty: str) -> None:
    """Of loss and penalties by D's parameters, against differences of the value; and their own gradients again."""
    discriminator = of_layers(nn.Linear(2, 3), ACTIVATION_MODULES[activation](), nn.Linear(3, 1))
    options = DiscriminatorOptions(loss="relativistic", pac=2, **PENALTIES[penalty])
    real, fake = torch.randn(2, 4, 1, dtype=torch.float64)
    names = [name for name, _ in discriminator.named_parameters()]

    def total(*parameters: Tensor) -> Tensor:
        torch.manual_seed(1)
        found: list[Tensor] = []
        kept = composed.update
        composed.update = lambda optimizer, loss, *_: found.append(loss)  # type: ignore[assignment]
        try:
            network = Bound(discriminator, dict(zip(names, parameters, strict=True)))
            part = composed.DiscriminatorPart(network, options, composed.Progress(()), True)
            part.update(None, real, fake, (None, None))  # type: ignore[arg-type]
        finally:
            composed.update = kept
        return found[0]

    parameters = [p.detach().clone().requires_grad_() for p in discriminator.parameters()]
    assert torch.autograd.gradcheck(total, parameters)
    if activation in SMOOTH:
        assert torch.autograd.gradgradcheck(total, parameters)


class Bound(nn.Module):
    """A network with other parameters than its own."""

    def __init__(self, network: nn.Module, parameters: dict[str, Tensor]) -> None:
        super().__init__()
        self._network, self._given = [network], parameters

    def forward(self, input: Tensor) -> Tensor:
        return torch.func.functional_call(self._network[0], self._given, (input,))


def test_instance_noise_falls_linearly() -> None:
    options = StepOptions(instance_noise=0.8, instance_noise_steps=4)
    assert [options.noise_scale(i) for i in range(6)] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0, 0.0])
    assert {StepOptions(instance_noise=0.8).noise_scale(i) for i in (0, 10**6)} == {0.8}
    assert StepOptions(instance_noise_steps=4).noise_scale(2) == 0.0


def test_the_decay_of_the_noise_follows_from_the_state(backend: str) -> None:
    """A step that took the state of another goes on with what is left of the noise."""
    options = {"instance_noise": 0.5, "instance_noise_steps": 4, "r1_gamma": 1.0, "r1_every": 3}
    pair = networks()
    first = twin(TrainStep, *pair, adam, **options)
    for _ in range(2):
        first.step(*inputs(options))
    given, results = inputs(options), []
    for steps_done in (None, 2, 4):
        trainer = copy.deepcopy(first)
        if steps_done is not None:
            state = first.state_dict()
            trainer = twin(TrainStep, first.generator, first.discriminator, adam, **options)
            trainer.g_optimizer.load_state_dict(copy.deepcopy(first.g_optimizer.state_dict()))
            trainer.d_optimizer.load_state_dict(copy.deepcopy(first.d_optimizer.state_dict()))
            trainer.load_state_dict({**state, "steps_done": steps_done})
        torch.manual_seed(3)
        results.append([*trainer.step(*given), *state_of(trainer)])
    assert all(map(torch.equal, results[0], results[1]))
    assert not all(map(torch.equal, results[0], results[2]))


@pytest.mark.parametrize("whole", [True, False])
def test_clipping_is_of_one_norm_an_optimizer(backend: str, whole: bool) -> None:
    """Over all its groups; a step of gradient descent with rate 1 moves the parameters by that norm, or by less."""

    def make(parameters: Any) -> SGD:
        held = list(parameters)
        return SGD([{"params": held[:1]}, {"params": held[1:]}] if not whole else held, lr=1.0)

    for norm in (1e-3, 1e3):
        trainer = twin(TrainStep, *networks(), make, clip_grad_norm=norm)
        free = copy.deepcopy(trainer)
        free.clip_grad_norm = None
        moved = []
        given = inputs({})
        for each in (trainer, free):
            before = [p.detach().clone() for n in (each.discriminator, each.generator) for p in n.parameters()]
            each.step(*given)
            after = [p.detach() for n in (each.discriminator, each.generator) for p in n.parameters()]
            moved.append([a - b for a, b in zip(after, before, strict=True)])
        of_d, of_g = (torch.cat([m.flatten() for m in moved[0][part]]) for part in (slice(4), slice(4, 8)))
        if norm == 1e-3:  # torch divides by the norm and 1e-6
            assert of_d.norm().item() == pytest.approx(norm, rel=1e-3)
            assert of_g.norm().item() == pytest.approx(norm, rel=1e-3)
        else:
            assert_close_in_float64(*moved)


def test_a_discriminator_that_ignores_its_input_has_no_penalty(backend: str) -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.level = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def forward(self, input: Tensor) -> Tensor:
            return self.level.expand(len(input))

    discriminator = Constant()
    step = DiscriminatorStep(discriminator, SGD(discriminator.parameters(), lr=1.0), r1_gamma=1.0)
    with pytest.raises(RuntimeError, match="the discriminator must give outputs that depend on its input"):
        step.step(*torch.randn(2, BATCH, DATA, dtype=torch.float64))
    assert discriminator.level.item() == 0
    step.r1_gamma = 0.0
    step.step(*torch.randn(2, BATCH, DATA, dtype=torch.float64))


def test_statistics_of_layers_are_restored_where_a_network_refuses(backend: str) -> None:
    """D takes another width than the data's, which shows behind its BatchNorm."""
    discriminator = of_layers(nn.BatchNorm1d(DATA), nn.Linear(DATA + 1, 1))
    step = DiscriminatorStep(discriminator, SGD(discriminator.parameters(), lr=1.0))
    before = copy.deepcopy(discriminator.state_dict())
    with pytest.raises(RuntimeError):
        step.step(*torch.randn(2, BATCH, DATA, dtype=torch.float64))
    assert_close_in_float64(discriminator.state_dict(), before, bound=0)


SIGMOIDS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Sequential(nn.Linear(DATA, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1), nn.Sigmoid()).double(),
    "wrapped": lambda: nn.DataParallel(
        nn.Sequential(nn.Linear(DATA, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1), nn.Sigmoid()).double()
    ),
}


# Of the wrapped one the Sigmoid is found in another way; what is done with it then is the same.
OF_SIGMOIDS = [
    (network, loss, penalty)
    for network, penalties in (("plain", PENALTIES), ("wrapped", ("none", "all")))
    for loss in reference.GAN_LOSSES
    for penalty in penalties
]


@pytest.mark.parametrize("engine", [True, False], ids=["engine", "composed"])
@pytest.mark.parametrize(("network", "loss", "penalty"), OF_SIGMOIDS)
def test_a_sigmoid_at_the_end_of_d(backend: str, network: str, loss: str, penalty: str, engine: bool) -> None:
    """Folded into the loss or trained with BCELoss by the cross-entropy losses; an activation by the others."""
    options = {"loss": loss, **PENALTIES[penalty]}
    torch.manual_seed(0)
    pair = networks()[0], SIGMOIDS[network]()
    ours, plain = twin(TrainStep, *pair, adam, engine=engine, **options), twin(Plain, *pair, adam, **options)
    assert ("Sigmoid" in ours.plan) == (loss in ("non_saturating", "minimax"))
    for i in range(4):
        given = inputs(options)
        results = []
        for trainer in (ours, plain):
            torch.manual_seed(i)
            results.append(tuple(trainer.step(*given)))
        assert_close_in_float64(*results, bound=1e-9)
    assert_close_in_float64(state_of(ours), state_of(plain), bound=1e-9)


@pytest.mark.parametrize("loss", reference.GAN_LOSSES)
def test_layers_that_make_no_logit_are_refused_where_one_is_needed(loss: str) -> None:
    generator, _ = networks()
    discriminator = nn.Sequential(nn.Linear(DATA, 1), nn.Hardsigmoid()).double()
    make = functools.partial(
        TrainStep, generator, discriminator, adam(generator.parameters()), adam(discriminator.parameters()), loss=loss
    )
    if loss in ("non_saturating", "minimax", "relativistic"):
        with pytest.raises(ValueError, match="discriminator must end in a layer that makes a logit"):
            make()
        return
    assert all(value.isfinite() for value in make().step(*inputs({})))
    assert generator[0].in_features == LATENT
