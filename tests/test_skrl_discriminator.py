"""The update of an AMP discriminator through a step, against skrl's loss under autograd and Adam."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from amp import Discriminator, loss
from conformance import assert_close_in_float64, assert_within_bound, here
from torch import Tensor, nn
from torch.nn import functional as F

from fastgan.integrations.skrl import accelerate
from fastgan.integrations.skrl_discriminator import Amp, AsEver, Settings, chain_of

pytestmark = pytest.mark.usefixtures("one_thread")

DATA, BATCH = 6, 24
DEFAULTS = Settings(5.0, 0.05, 5.0, 0.0001)  # skrl's


def model_of(*between: nn.Module) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(nn.Sequential(nn.Linear(DATA, 16), *(between or (nn.Tanh(),)), nn.Linear(16, 1)))


def batches(steps: int, dtype: torch.dtype) -> list[list[Tensor]]:
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(1), device="cpu", dtype=torch.float64)
    sizes = BATCH, BATCH // 2, BATCH  # the replay may be shorter
    given = [[(draw(size, DATA) + (i == 2)).to(dtype) for i, size in enumerate(sizes)] for _ in range(steps)]
    return list(map(here, given))


def joint(model: nn.Module, policy: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam([*policy.parameters(), *model.parameters()], lr=1e-3)


def amp_of(model: Any, settings: Settings, optimizer: torch.optim.Adam) -> Amp:
    sample = torch.zeros(2, DATA, dtype=next(model.parameters()).dtype)
    return Amp(model, chain_of(model, sample), settings, optimizer)


def plain(model: Any, settings: Settings, optimizer: torch.optim.Adam, given: list[list[Tensor]]) -> list[Tensor]:
    losses = []
    for each in given:
        optimizer.zero_grad()
        value = loss(model, settings, *each)
        value.backward()
        optimizer.step()
        losses.append(value.detach())
    return losses


def stepped(model: Any, settings: Settings, optimizer: torch.optim.Adam, given: list[list[Tensor]]) -> list[Tensor]:
    amp = amp_of(model, settings, optimizer)
    amp.take_over()
    losses = [amp.update(*each) for each in given]
    amp.hand_back()
    return losses


def results(
    run: Callable[..., list[Tensor]], dtype: torch.dtype, settings: Settings = DEFAULTS, steps: int = 4
) -> tuple[list[Tensor], ...]:
    """Losses, weights, and the moments that the agent's optimizer has."""
    model = model_of().to(dtype)
    optimizer = joint(model, nn.Linear(2, 2, dtype=dtype))
    losses = run(model, settings, optimizer, batches(steps, dtype))
    states = [optimizer.state[p] for p in model.parameters()]
    moments = [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")]
    assert [float(state["step"]) for state in states] == [steps] * len(states)
    return losses, [p.detach() for p in model.parameters()], moments


@pytest.mark.parametrize(
    "settings",
    [
        DEFAULTS,
        Settings(1.0, 0.0, 0.0, 0.0),
        Settings(0.3, 0.5, 0.0, 0.01),
        Settings(2.0, 0.0, 20.0, 0.0),
    ],
)
def test_it_is_skrls_update_in_float64(backend: str, settings: Settings) -> None:
    ours, theirs = (results(run, torch.float64, settings) for run in (stepped, plain))
    assert_close_in_float64(ours, theirs)


def test_it_is_skrls_update_within_twice_its_own_rounding(backend: str) -> None:
    exact = results(plain, torch.float64)
    assert_within_bound(results(stepped, torch.float32), results(plain, torch.float32), exact)


def test_it_is_one_native_call(compiled: None) -> None:
    model = model_of()
    amp = amp_of(model, DEFAULTS, joint(model, nn.Linear(2, 2)))
    amp.update(*batches(1, torch.float32)[0])
    assert amp.step.plan.startswith("the whole update of D as one native call"), amp.step.plan


def test_updates_go_on_where_the_other_ended(backend: str) -> None:
    """In turn, and with a learning rate that was changed between them."""
    given = batches(8, torch.float64)
    models = [model_of().double() for _ in range(2)]
    ours, theirs = (joint(model, nn.Linear(2, 2).double()) for model in models)
    amp = amp_of(models[0], DEFAULTS, ours)
    for turn in range(4):
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["lr"] = 1e-3 * (turn + 1)
        part = given[2 * turn : 2 * turn + 2]
        plain(models[1], DEFAULTS, theirs, part)
        if turn % 2 == 0:
            plain(models[0], DEFAULTS, ours, part)
        else:
            amp.take_over()
            for each in part:
                amp.update(*each)
            amp.hand_back()
    assert_close_in_float64(list(models[0].parameters()), list(models[1].parameters()))


def test_a_state_that_was_taken_away_begins_anew(backend: str) -> None:
    model = model_of().double()
    optimizer = joint(model, nn.Linear(2, 2))
    amp = amp_of(model, DEFAULTS, optimizer)
    before, fresh = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    given, ends = batches(1, torch.float64)[0], []
    for _ in range(2):
        model.load_state_dict(before)
        optimizer.load_state_dict(copy.deepcopy(fresh))
        amp.take_over()
        amp.update(*given)
        amp.hand_back()
        ends.append([p.detach().clone() for p in model.parameters()])
    assert_close_in_float64(*ends)


def test_it_serves_until_something_changes() -> None:
    model, policy = model_of(), nn.Linear(2, 2)
    optimizer = joint(model, policy)
    amp = amp_of(model, DEFAULTS, optimizer)
    chain = chain_of(model, torch.zeros(2, DATA))
    assert amp.serves(model, chain, DEFAULTS, optimizer)
    assert not amp.serves(model, chain, DEFAULTS._replace(gradient_penalty=1.0), optimizer)
    assert not amp.serves(model, chain, DEFAULTS, joint(model, policy))
    other = model_of()
    assert not amp.serves(other, chain_of(other, torch.zeros(2, DATA)), DEFAULTS, joint(other, policy))
    optimizer.param_groups[0]["eps"] = 1e-6
    assert not amp.serves(model, chain, DEFAULTS, optimizer)


def test_layers_may_lie_anywhere_in_the_model() -> None:
    """And be called with views, in place, or twice."""

    class Scattered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.activation = nn.Linear(8, 1), nn.ReLU(inplace=True)
            self.first = nn.ModuleList([nn.Linear(DATA, 8), nn.Linear(8, 8)])

        def act(self, inputs: dict[str, Tensor], *, role: str = "") -> tuple[Tensor, dict[str, Any]]:
            x = inputs["observations"]
            for layer in self.first:
                x = self.activation(layer(x.view(len(x), -1)))
            return self.last(x), {}

    model = Scattered()
    found = chain_of(model, torch.randn(3, DATA))
    expected = [model.first[0], model.activation, model.first[1], model.activation, model.last]
    assert [*map(id, found)] == [*map(id, expected)]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_watching_draws_nothing() -> None:
    model = model_of(nn.Dropout(0.5), nn.ReLU())
    before = torch.get_rng_state()
    chain_of(model, torch.zeros(2, DATA))
    assert torch.equal(torch.get_rng_state(), before)


class Computing(Discriminator):
    """Does more than to call its layers."""

    def __init__(self, compute: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__(model_of().net)
        self.compute = compute

    def act(self, inputs: dict[str, Tensor], *, role: str = "") -> tuple[Tensor, dict[str, Any]]:
        return self.compute(self.net, inputs["observations"]), {}


def skipping(net: Any, x: Tensor) -> Tensor:
    net[2](net[0](x))
    return net[2](net[0](x))


@pytest.mark.parametrize(
    "compute",
    [
        lambda net, x: net(x) + 0,
        lambda net, x: net(x.clamp(-5, 5)),
        lambda net, x: net[2](F.relu(net[0](x))),
        lambda net, x: net[2](net[0](x).relu_()),
        lambda net, x: net(x).mul_(2),
        lambda net, x: net(x.flip(1)),
        lambda net, x: net(x[:1]),
        skipping,
    ],
)
def test_what_else_a_model_computes_is_seen(compute: Callable[[nn.Module, Tensor], Tensor]) -> None:
    with pytest.raises(AsEver, match="compute does more than to call its layers"):
        chain_of(Computing(compute), torch.randn(3, DATA))


def hooked() -> nn.Module:
    model = model_of()
    model.net[0].register_forward_hook(lambda *given: None)
    return model


def spare() -> nn.Module:
    model = model_of()
    model.spare = nn.Linear(2, 2)
    return model


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (model_of(nn.BatchNorm1d(16)), "a layer BatchNorm1d"),
        (Discriminator(nn.Sequential(nn.Linear(DATA, 1), nn.Sigmoid())), "does not end in a Linear layer"),
        (Discriminator(nn.Linear(DATA, 2)), "does not end in a Linear layer with one output"),
        (hooked(), "has hooks"),
        (spare(), "has parameters that its output is not made by"),
    ],
)
def test_models_that_skrl_updates(model: nn.Module, why: str) -> None:
    with pytest.raises(AsEver, match=why):
        chain_of(model, torch.randn(3, DATA))


@pytest.mark.parametrize(
    ("settings", "optimizer", "why"),
    [
        (DEFAULTS._replace(loss=0.0), {}, "discriminator_loss_scale is 0.0"),
        (DEFAULTS._replace(gradient_penalty=-1.0), {}, "discriminator_gradient_penalty_scale is -1.0"),
        (DEFAULTS, {"weight_decay": 0.1}, "optimizer has weight_decay=0.1"),
        (DEFAULTS, {"amsgrad": True}, "optimizer has amsgrad=True"),
    ],
)
def test_settings_that_skrl_updates(settings: Settings, optimizer: dict[str, Any], why: str) -> None:
    model = model_of()
    with pytest.raises(AsEver, match=why):
        amp_of(model, settings, torch.optim.Adam(model.parameters(), **optimizer))


def test_optimizers_that_skrl_has_not() -> None:
    model = model_of()
    parameters = list(model.parameters())
    with pytest.raises(AsEver, match="is SGD, not Adam"):
        amp_of(model, DEFAULTS, torch.optim.SGD(parameters))  # type: ignore[arg-type]
    with pytest.raises(AsEver, match="in no one group"):
        amp_of(model, DEFAULTS, torch.optim.Adam([{"params": parameters[:2]}, {"params": parameters[2:]}]))


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skrl", None)
    with pytest.raises(ImportError, match=r"pip install 'skrl>=2\.1\.0"):
        accelerate()


@pytest.mark.parametrize("version", ["2.0.0", "2.1.2", "unknown"])
def test_an_unknown_version_is_left_alone(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    package = ModuleType("skrl")
    package.__version__ = version
    monkeypatch.setitem(sys.modules, "skrl", package)
    with pytest.warns(UserWarning, match=f"skrl {version} is not accelerated: fastgan knows skrl 2.1.0 and 2.1.1"):
        assert not accelerate().is_on


def test_a_last_module_without_a_weight_is_skrls_matter() -> None:
    model = model_of()
    model.unused = nn.ReLU()
    with pytest.raises(AsEver, match="last module has no weight"):
        amp_of(model, DEFAULTS, torch.optim.Adam(model.parameters()))
    amp_of(model, DEFAULTS._replace(logit_regularization=0.0), torch.optim.Adam(model.parameters()))
