"""`fuse` and `unfuse`: what they change in a module tree, and what they leave as it was."""

from __future__ import annotations

import copy
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import warm
from conformance import assert_close_in_float64, assert_within_bound
from fused_calls import FusedCalls
from torch import nn
from torch.nn.utils import parametrizations

from fastgan.nn import MLP, FusedSequential, fuse, unfuse

pytestmark = pytest.mark.usefixtures("backend")

ROOT = Path(__file__).parent.parent


class Named(nn.Sequential):
    """A Sequential subclass without a forward of its own."""

    def __init__(self, *modules: nn.Module, note: str = "") -> None:
        super().__init__(*modules)
        self.note = note


class Residual(nn.Sequential):
    """A Sequential subclass with a forward of its own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input + super().forward(input)


class Doubled(nn.Linear):
    """A Linear subclass with a forward of its own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


class Square(nn.ReLU):
    """An activation subclass."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).square()


class Network(nn.Module):
    """A module with Sequentials inside Sequentials inside a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        inner = nn.Sequential(nn.Linear(5, 5), nn.SiLU())
        self.parts = nn.ModuleDict({"body": nn.Sequential(nn.Linear(4, 5), nn.Tanh(), inner, nn.Linear(5, 3))})
        self.skip = nn.Linear(4, 3)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.parts["body"](input) + self.skip(input)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> FusedCalls:
    return FusedCalls(monkeypatch)


def train_once(module: nn.Module, input: torch.Tensor) -> list[torch.Tensor]:
    """Output, input gradient, parameter gradients and buffers of one training pass under a fixed seed."""
    torch.manual_seed(5)
    at = input.clone().requires_grad_()
    output = module(at)
    wanted = [at, *(p for p in module.parameters() if p.requires_grad)]
    gradients = torch.autograd.grad(output.square().sum(), wanted)
    return [output, *gradients, *(b.clone() for b in module.buffers())]


def assert_fused_equals_plain(build: Callable[[], nn.Module], input: torch.Tensor) -> None:
    """In training and in evaluation, a fused module gives what its plain twin gives, in float32 and in float64."""
    twins = []
    for _ in range(4):
        torch.manual_seed(4)
        twins.append(build())
    exact = twins.pop().double()
    fuse(twins[0])
    fuse(twins[2]).double()
    draws = any(isinstance(module, nn.Dropout) for module in exact.modules())  # other masks than in float32
    for training in (True, False, True):
        wide, expected = (train_once(module.train(training), input.double()) for module in (twins[2], exact))
        assert_close_in_float64(wide, expected)
        if not (draws and training):
            results = [train_once(module.train(training), input) for module in twins[:2]]
            assert_within_bound(*results, expected)


def test_fuse_then_unfuse_leaves_the_module_as_it_was(calls) -> None:
    module, input = Network().double(), torch.randn(6, 4, dtype=torch.float64)
    before = train_once(module, input)
    parameters, names, text = list(module.parameters()), list(module.state_dict()), repr(module)
    assert calls.of(module, input) == []
    assert fuse(module) is module
    assert calls.of(module, input) == [1, 1, 1]  # the nested Sequential runs as a call of its own
    assert [type(m) for m in module.modules()].count(FusedSequential) == 2
    after = train_once(module, input)
    assert list(module.state_dict()) == names
    assert fuse(module) is module  # a second time changes nothing
    assert calls.of(module, input) == [1, 1, 1]
    assert unfuse(module) is module
    assert calls.of(module, input) == []
    assert repr(module) == text
    assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))
    undone = train_once(module, input)
    assert_close_in_float64(after, before)
    assert all(map(torch.equal, undone, before))


def test_unfuse_makes_a_sequential_of_an_mlp(calls) -> None:
    module, input = MLP([4, 5, 3], "relu", dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    assert calls.of(module, input) == [2]
    weights = [p.data_ptr() for p in module.parameters()]
    before = module(input)
    assert type(unfuse(module)) is nn.Sequential
    assert calls.of(module, input) == []
    assert [p.data_ptr() for p in module.parameters()] == weights
    assert_close_in_float64(module(input), before)
    assert type(pickle.loads(pickle.dumps(module))) is nn.Sequential
    assert type(fuse(module)) is FusedSequential


@pytest.mark.parametrize("function", [fuse, unfuse])
@pytest.mark.parametrize("value", [None, torch.nn.Linear, [nn.Linear(1, 1)], torch.zeros(2)])
def test_what_is_no_module_is_refused(function, value) -> None:
    with pytest.raises(TypeError, match=rf"module must be a torch\.nn\.Module, not {type(value).__name__}"):
        function(value)


@pytest.mark.parametrize("function", [fuse, unfuse])
def test_modules_without_a_sequential_are_left_alone(function) -> None:
    module = nn.Linear(2, 2)
    assert function(module) is module
    assert type(module) is nn.Linear


def saved_and_loaded(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "itself": lambda m: m,
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "pickle protocol 2": lambda m: pickle.loads(pickle.dumps(m, protocol=2)),
    "save": saved_and_loaded,
}


@pytest.mark.parametrize("copier", COPIES)
def test_a_subclass_without_forward_keeps_its_class(copier, calls) -> None:
    plain = Named(nn.Linear(4, 5), nn.ELU(), nn.Linear(5, 3), note="kept").double()
    input = torch.randn(6, 4, dtype=torch.float64)
    expected, text = plain(input), repr(plain)
    module = COPIES[copier](fuse(plain))
    assert isinstance(module, Named)
    assert type(module).__name__ == "Named"
    assert repr(module) == text
    assert module.note == "kept"
    assert calls.of(module, input) == [2]
    assert_close_in_float64(module(input), expected)
    assert type(unfuse(module)) is Named
    assert calls.of(module, input) == []
    assert type(pickle.loads(pickle.dumps(module))) is Named


def test_a_subclass_with_its_own_forward_is_left_alone(calls) -> None:
    def build() -> nn.Sequential:
        return nn.Sequential(Residual(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2))

    module = fuse(build())
    assert type(module[0]) is Residual
    assert calls.of(module, torch.randn(3, 4)) == [1]  # the outer Sequential's own layer
    assert_fused_equals_plain(build, torch.randn(3, 4))


LAYERS: dict[str, tuple[Callable[[], nn.Module], list[int]]] = {
    "batch norm": (lambda: nn.BatchNorm1d(6), [1, 1]),
    "dropout": (lambda: nn.Dropout(0.5), [1, 1]),
    "layer norm": (lambda: nn.LayerNorm(6), [1, 1]),
    "activation subclass": (Square, [1, 1]),
    "ELU of another alpha": (lambda: nn.ELU(alpha=2.0), [1, 1]),
    "softplus of another beta": (lambda: nn.Softplus(beta=2.0), [1, 1]),
    "softplus of another threshold": (lambda: nn.Softplus(threshold=1.0), [1, 1]),
    "GELU by tanh": (lambda: nn.GELU("tanh"), [1, 1]),
    "PReLU": (nn.PReLU, [1, 1]),
    "a Sequential of two activations": (lambda: nn.Sequential(nn.ReLU(), nn.Sigmoid()), [1, 1]),
    "Linear with its own forward": (lambda: Doubled(6, 6), [1, 1]),
    "ReLU in place": (lambda: nn.ReLU(inplace=True), [2]),
    "leaky ReLU in place": (lambda: nn.LeakyReLU(0.3, inplace=True), [2]),
    "identity": (nn.Identity, [2]),
    "Linear without bias": (lambda: nn.Linear(6, 6, bias=False), [3]),
    "Linear subclass": (lambda: type("Own", (nn.Linear,), {})(6, 6), [3]),
    "old weight norm": (lambda: nn.utils.weight_norm(nn.Linear(6, 6)), [1, 1]),  # computes in a pre-hook
    "old spectral norm": (lambda: nn.utils.spectral_norm(nn.Linear(6, 6)), [1, 1]),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(6, 6)), [3]),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(6, 6)), [3]),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_any_layer_between_linears(name, calls) -> None:
    middle, expected_calls = LAYERS[name]

    def build() -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 6), middle(), nn.Linear(6, 3), nn.Tanh())

    assert calls.of(fuse(build()), torch.randn(8, 4)) == expected_calls
    assert_fused_equals_plain(build, torch.randn(8, 4))


def test_convolutions_and_reshapes() -> None:
    def build() -> nn.Sequential:
        convolution = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten())
        return nn.Sequential(convolution, nn.Linear(8, 5), nn.GELU(), nn.Unflatten(1, (5, 1)), nn.Linear(1, 2))

    assert_fused_equals_plain(build, torch.randn(3, 1, 4, 4))


def test_a_layer_used_twice(calls) -> None:
    def build() -> nn.Sequential:
        shared = nn.Linear(4, 4)
        return nn.Sequential(shared, nn.Tanh(), shared, nn.ReLU(), shared)

    module, input = fuse(build()), torch.randn(6, 4)
    assert calls.of(module, input) == [3]
    assert len(list(module.parameters())) == 2
    assert_fused_equals_plain(build, input)


def test_frozen_parameters() -> None:
    def build() -> nn.Sequential:
        module = nn.Sequential(nn.Linear(4, 5), nn.Softplus(), nn.Linear(5, 3))
        module[0].requires_grad_(False)
        module[2].bias.requires_grad_(False)
        return module

    assert_fused_equals_plain(build, torch.randn(6, 4))
    module = fuse(build())
    module(torch.randn(6, 4)).sum().backward()
    assert [p.grad is not None for p in module.parameters()] == [False, False, True, False]
    module.requires_grad_(False)
    assert not module(torch.randn(6, 4)).requires_grad


def test_lazy_layers_take_their_width_from_the_first_input(calls) -> None:
    module = fuse(nn.Sequential(*(nn.LazyLinear(5), nn.ReLU(), nn.LazyLinear(3))).double())
    input = torch.randn(6, 4, dtype=torch.float64)
    first = module(input)
    assert [type(m) for m in module] == [nn.Linear, nn.ReLU, nn.Linear]
    assert calls.of(module, input) == [2]
    assert_close_in_float64(module(input), first)


def test_in_place_activations_spare_the_input() -> None:
    module, input = fuse(nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))), torch.randn(3, 4)
    before = input.clone()
    module(input)
    assert torch.equal(input, before)


def test_inputs_that_are_no_tensors_pass_as_in_torch(calls) -> None:
    class Unpack(nn.Module):
        def forward(self, pair):
            return pair[0] + pair[1]

    module = fuse(nn.Sequential(Unpack(), nn.Linear(4, 2), nn.ReLU()).double())
    input = torch.randn(3, 4, dtype=torch.float64)
    assert_close_in_float64(module((input, input)), module(torch.stack((input, input))))
    with pytest.raises(TypeError, match="must be Tensor, not list"):
        fuse(nn.Sequential(nn.Linear(4, 2)))([1.0])


WRAPPED_EARLY = """
from torch import nn

def wrap(kind):
    init = kind.__init__
    def __init__(self, *args, **kwargs):
        init(self, *args, **kwargs)
    kind.__init__ = __init__

for kind in (nn.ELU, nn.GELU, nn.LeakyReLU, nn.Softplus, nn.ReLU, nn.SiLU):
    wrap(kind)
import torch
from fastgan import layers
from fastgan.nn import MLP, fuse

x = torch.randn(64, 4, dtype=torch.float64)
for activation in (nn.ELU(2.0), nn.GELU("tanh"), nn.LeakyReLU(0.4), nn.Softplus(3.0), nn.ReLU(True), nn.SiLU()):
    plain = nn.Sequential(nn.Linear(4, 8), activation, nn.Linear(8, 3)).double()
    expected = plain(x)
    error = (fuse(plain)(x) - expected).abs().max()
    assert error < 1e-12, (activation, error)
assert layers.fused_activation(nn.LeakyReLU(0.2)) == ("leaky_relu", 0.2)
"""


def test_constructors_that_were_wrapped_before_fastgan_was_imported() -> None:
    """A tool that sees every module made, and hides the signature: the layers are what their attributes say."""
    done = warm.run(["-c", WRAPPED_EARLY], ROOT, os.environ)
    assert done.returncode == 0, done.stderr
