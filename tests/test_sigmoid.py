"""Discriminators that end in a Sigmoid, the tutorials' form with BCELoss, and whatever else a network may end in."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conformance import assert_close_in_float64
from conftest import run_on_or_skip
from plain_step import adam
from torch import Tensor, nn

from fastgan import TrainStep
from fastgan.nn import MLP, fuse

LATENT, DATA, BATCH = 3, 4, 8


@pytest.fixture(params=("auto", "cpu", "reference", "simt"))
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    with run_on_or_skip(request.param) as name:
        yield name


def generator(*last: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(LATENT, 8), nn.ReLU(), nn.Linear(8, DATA), *last).double()


def discriminator(*last: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(DATA, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1), *last).double()


def normalized() -> nn.Module:
    """BatchNorm before the Sigmoid. Before BatchNorm a bias has no gradient but rounding, which Adam scales up."""
    d = discriminator(nn.BatchNorm1d(1), nn.Sigmoid()).double()
    d[2].register_parameter("bias", None)
    return d.double()


class Tutorial:
    """The loop of the tutorials: BCELoss on D's own output."""

    def __init__(self, g: nn.Module, d: nn.Module, loss: str = "non_saturating", **options: float) -> None:
        self.generator, self.discriminator, self.loss = g, d, loss
        self.g_optimizer, self.d_optimizer = adam(g.parameters()), adam(d.parameters())
        self.real_target, self.fake_target = options.get("real_target", 1.0), options.get("fake_target", 0.0)
        self.r1_gamma, self.r1_every, self.count = options.get("r1_gamma", 0.0), options.get("r1_every", 16), 0

    def step(self, real: Tensor, labels: None, noise: Tensor) -> tuple[Tensor, ...]:
        def bce(output: Tensor, target: float) -> Tensor:
            return F.binary_cross_entropy(output, torch.full_like(output, target))

        real = real.clone().requires_grad_()
        of_real, of_fake = self.discriminator(real), self.discriminator(self.generator(noise[0]).detach())
        total = d_loss = bce(of_real, self.real_target) + bce(of_fake, self.fake_target)
        if self.r1_gamma and self.count % self.r1_every == 0:
            (slope,) = torch.autograd.grad(of_real.sum(), real, create_graph=True)
            penalty = slope.pow(2).sum(1).mean()
            total = d_loss + 0.5 * self.r1_gamma * self.r1_every * penalty
        self.d_optimizer.zero_grad()
        total.backward()
        self.d_optimizer.step()
        output = self.discriminator(self.generator(noise[1]))
        g_loss = bce(output, 1.0) if self.loss == "non_saturating" else -bce(output, 0.0)
        self.g_optimizer.zero_grad()
        g_loss.backward()
        self.g_optimizer.step()
        self.count += 1
        return d_loss.detach(), g_loss.detach(), of_real.mean().detach(), of_fake.mean().detach()


def train(kind: Callable[..., Any], g: nn.Module, d: nn.Module, steps: int, **options: Any) -> list[Tensor]:
    """Every statistic of every step, then all parameters and buffers."""
    g, d = copy.deepcopy(g), copy.deepcopy(d)
    if kind is TrainStep:
        trained = TrainStep(g, d, adam(g.parameters()), adam(d.parameters()), **options)
    else:
        trained = Tutorial(g, d, **options)
    draw = torch.Generator().manual_seed(3)
    dtype = next(g.parameters()).dtype
    seen: list[Tensor] = []
    for _ in range(steps):
        real = torch.randn(BATCH, DATA, generator=draw, dtype=dtype)
        noise = torch.randn(2, BATCH, LATENT, generator=draw, dtype=dtype)
        seen += trained.step(real, None, noise)
    return [*seen, *(t.detach() for net in (g, d) for t in net.state_dict().values())]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert_close_in_float64(a, b, 1e-8)


ENDS = {
    "plain": lambda: discriminator(nn.Sigmoid()),
    "fused": lambda: fuse(discriminator(nn.Sigmoid())),
    "mlp": lambda: MLP([DATA, 8, 1], output_activation="sigmoid", dtype=torch.float64),
    "nested": lambda: discriminator(nn.Sequential(nn.Identity(), nn.Sequential(nn.Sigmoid()))),
    "before identity": lambda: discriminator(nn.Sigmoid(), nn.Identity()),
    "after batch norm": normalized,
    "after dropout in evaluation": lambda: discriminator(nn.Dropout(0.5).eval(), nn.Sigmoid()),
    "after tanh": lambda: discriminator(nn.Tanh(), nn.Sigmoid()),
    "two": lambda: discriminator(nn.Sigmoid(), nn.Sigmoid()),
    "flattened": lambda: discriminator(nn.Sigmoid(), nn.Flatten(0)),
}


@functools.cache
def tutorials(end: str, loss: str, steps: int) -> list[Tensor]:
    torch.manual_seed(0)
    return train(Tutorial, generator(), ENDS[end](), steps, loss=loss)


@pytest.mark.deep_on("cpu", "simt")
@pytest.mark.parametrize("engine", [True, False], ids=["engine", "composed"])
@pytest.mark.parametrize("loss", ["non_saturating", "minimax"])
@pytest.mark.parametrize("end", ENDS)
def test_steps_against_bce_loss(place: str, end: str, loss: str, engine: bool) -> None:
    """Of the kernels, on `cpu` and `simt`, a hundred; `auto` and the reference show in twenty what is folded."""
    steps = 100 if place in ("cpu", "simt") else 20
    torch.manual_seed(0)
    ours = train(TrainStep, generator(), ENDS[end](), steps, loss=loss, engine=engine)
    assert_same(ours, tutorials(end, loss, steps))


@pytest.mark.parametrize("engine", [True, False], ids=["engine", "composed"])
@pytest.mark.parametrize(
    "options", [{"r1_gamma": 2.0, "r1_every": 4}, {"real_target": 0.9, "fake_target": 0.1}], ids=["r1", "smoothed"]
)
def test_options(place: str, options: dict[str, float], engine: bool) -> None:
    """The penalty differentiates D's own output, Sigmoid included."""
    d = discriminator(nn.Sigmoid())
    ours = train(TrainStep, generator(), d, 20, engine=engine, **options)
    assert_same(ours, train(Tutorial, generator(), d, 20, **options))


def hooked() -> nn.Module:
    d = discriminator(nn.Sigmoid())
    d[-1].register_forward_hook(lambda module, given, output: output * 0.5)
    return d


def hooked_whole() -> nn.Module:
    d = discriminator(nn.Sigmoid())
    d.register_forward_hook(lambda module, given, output: output * 0.5)
    return d


def watched_behind(*last: nn.Module) -> nn.Module:
    """Something of the user's is given what D returns."""
    d = discriminator(*last)
    watched = [m for m in d.modules() if type(m) in (nn.Identity, nn.Dropout)][-1]
    watched.register_forward_pre_hook(lambda module, given: (given[0].sqrt(),))
    return d


def forward_behind() -> nn.Module:
    d = discriminator(nn.Sigmoid(), nn.Identity())
    d[-1].forward = torch.sqrt
    return d


def hooked_holder() -> nn.Module:
    d = discriminator(nn.Sequential(nn.Sigmoid()))
    d[-1].register_forward_hook(lambda module, given, output: output.sqrt())
    return d


class OfOnesOwn(nn.Module):
    """As the tutorials write it."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.model, self.shape = discriminator(nn.Sigmoid()), shape

    def forward(self, input: Tensor) -> Tensor:
        output = self.model(input)
        return output.view(*self.shape) if self.shape else output


UNFOLDED = {
    "hook on it": hooked,
    "hook on D": hooked_whole,
    "hook on what holds it": hooked_holder,
    "hook behind it": lambda: watched_behind(nn.Sigmoid(), nn.Identity()),
    "hook behind it, nested": lambda: watched_behind(nn.Sigmoid(), nn.Sequential(nn.Flatten(), nn.Identity())),
    "hook behind it, on an idle dropout": lambda: watched_behind(nn.Sigmoid(), nn.Dropout(0.5).eval()),
    "forward behind it": forward_behind,
    "class of one's own": OfOnesOwn,
    "class of one's own, reshaped": lambda: OfOnesOwn(-1),
    "data parallel": lambda: nn.DataParallel(discriminator(nn.Sigmoid())),
}


@pytest.mark.parametrize("engine", [True, False], ids=["engine", "composed"])
@pytest.mark.parametrize("loss", ["non_saturating", "minimax"])
@pytest.mark.parametrize("case", UNFOLDED)
def test_a_sigmoid_that_cannot_be_folded_is_trained_with_bce_loss(
    place: str, case: str, loss: str, engine: bool
) -> None:
    d = UNFOLDED[case]()
    ours = train(TrainStep, generator(), d, 5, loss=loss, engine=engine)
    assert_same(ours, train(Tutorial, generator(), d, 5, loss=loss))


@pytest.mark.parametrize("engine", [True, False], ids=["engine", "composed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saturated_discriminator_keeps_its_gradient(place: str, dtype: torch.dtype, engine: bool) -> None:
    """Logits of 200: BCELoss sees 0 and 1, and its gradient is gone."""
    d = nn.Sequential(nn.Linear(DATA, 1), nn.Sigmoid()).to(dtype)
    with torch.no_grad():
        d[0].weight.zero_()
        d[0].bias.fill_(200.0)
    before = [p.detach().clone() for p in d.parameters()]
    tutorial = train(Tutorial, generator().to(dtype), d, 1)
    assert torch.equal(tutorial[-1], before[1])  # of the fakes: sigma is 1, its slope 0
    ours = train(TrainStep, generator().to(dtype), d, 1, engine=engine)
    assert all(t.isfinite().all() for t in ours)
    assert ours[0].item() == 200  # softplus(-200) + softplus(200)
    assert ours[2] == ours[3] == 1
    assert ours[-1].item() < 200


def test_the_plan_says_so(place: str) -> None:
    for engine in (True, False):
        for d, words in (
            (discriminator(nn.Sigmoid()), "Sigmoid is folded into the loss"),
            (hooked(), "BCELoss on D's own output"),
        ):
            g = generator()
            step = TrainStep(g, d, adam(g.parameters()), adam(d.parameters()), engine=engine)
            assert words in step.plan
    d = discriminator()
    assert "Sigmoid" not in TrainStep(g, d, adam(g.parameters()), adam(d.parameters())).plan


LAST = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "softplus": nn.Softplus,
    "softmax": lambda: nn.Softmax(1),
    "log softmax": lambda: nn.LogSoftmax(1),
    "log sigmoid": nn.LogSigmoid,
    "hardsigmoid": nn.Hardsigmoid,
    "dropout": lambda: nn.Dropout(0.0),
    "batch norm": lambda: nn.LazyBatchNorm1d(),
    "layer norm": lambda: nn.LayerNorm(DATA),
    "identity": nn.Identity,
    "softsign": nn.Softsign,
}
REFUSED = ("softmax", "log softmax", "log sigmoid", "hardsigmoid")


def materialized(module: nn.Module, width: int) -> nn.Module:
    with torch.no_grad():
        module.double()(torch.randn(4, width, dtype=torch.float64))
    return module.double()


@pytest.mark.parametrize("last", LAST)
def test_any_layer_may_be_the_generators_last(place: str, last: str) -> None:
    g = materialized(generator(LAST[last]()), LATENT)
    d = discriminator(nn.Sigmoid())
    expected = train(Tutorial, g, d, 5)
    for engine in (True, False):
        assert_same(train(TrainStep, g, d, 5, engine=engine), expected)


@pytest.mark.parametrize("last", LAST)
def test_any_other_layer_at_the_end_of_d_makes_a_logit_or_is_refused(place: str, last: str) -> None:
    if last in ("layer norm", "sigmoid"):
        pytest.skip("of another width, or above")
    d = materialized(discriminator(LAST[last]()), DATA)
    if last in REFUSED:
        with pytest.raises(ValueError, match="discriminator must end in a layer that makes a logit"):
            train(TrainStep, generator(), d, 1)
        return
    expected = train(Tutorial, generator(), nn.Sequential(d, nn.Sigmoid()), 5)
    for engine in (True, False):
        assert_same(train(TrainStep, generator(), d, 5, engine=engine), expected)


class Halving(nn.Identity):
    def forward(self, input: Tensor) -> Tensor:
        return input * 0.5


class HalvingCall(nn.Flatten):
    def __call__(self, input: Tensor) -> Tensor:
        return input * 0.5


class HalvingSequence(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        return input * 0.5


class Looking(nn.Identity):
    def forward(self, input: Tensor) -> Tensor:
        assert ((input > 0) & (input < 1)).all()
        return input.view_as(input)


@pytest.mark.parametrize("engine", [True, False], ids=["engine", "composed"])
@pytest.mark.parametrize("last", [Halving, HalvingCall, lambda: HalvingSequence(nn.Identity())])
def test_a_layer_with_a_forward_of_its_own_behind_a_sigmoid_is_any_other_layer(place: str, last, engine: bool) -> None:
    d = discriminator(nn.Sigmoid(), last())
    expected = train(Tutorial, generator(), nn.Sequential(d, nn.Sigmoid()), 5)
    assert_same(train(TrainStep, generator(), d, 5, engine=engine), expected)


@pytest.mark.parametrize("engine", [True, False], ids=["engine", "composed"])
def test_a_layer_of_ones_own_that_looks_at_the_output_sees_probabilities(place: str, engine: bool) -> None:
    d = discriminator(nn.Sigmoid(), Looking())
    ours = train(TrainStep, generator(), d, 5, engine=engine)
    assert_same(ours, train(Tutorial, generator(), d, 5))


@pytest.mark.parametrize("engine", [True, False], ids=["engine", "composed"])
@pytest.mark.parametrize("kind", [nn.Identity, nn.Flatten, nn.Dropout])
def test_a_class_patched_behind_a_sigmoid(
    place: str, kind: type[nn.Module], engine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "forward", Halving.forward)
    d = discriminator(nn.Sigmoid(), kind().eval())
    expected = train(Tutorial, generator(), nn.Sequential(d, nn.Sigmoid()), 5)
    assert_same(train(TrainStep, generator(), d, 5, engine=engine), expected)


@pytest.mark.parametrize("engine", [True, False], ids=["engine", "composed"])
def test_several_outputs(place: str, engine: bool) -> None:
    d = nn.Sequential(nn.Linear(DATA, 8), nn.ReLU(), nn.Linear(8, 5), nn.Sigmoid()).double()
    assert_same(train(TrainStep, generator(), d, 5, engine=engine), train(Tutorial, generator(), d, 5))
