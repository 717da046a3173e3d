"""What surrounds a call: autocast around backward, hooks on saved tensors, compiled transforms, in-place neighbours."""

from __future__ import annotations

import copy

import pytest
import torch
from conformance import as_double, assert_close_in_float64, assert_within_bound, in_double, overall_error
from torch import nn

from fastgan.functional import mlp
from fastgan.nn import MLP, FusedSequential, fuse, is_fully_fused, unfuse

ACTIVATIONS = ["tanh", "silu", "leaky_relu", "relu"]


def twins(activation: str = "tanh") -> tuple[MLP, nn.Module, nn.Module]:
    """An MLP, PyTorch's of the same weights, and that in float64."""
    ours = MLP([3, 8, 1], activation)
    plain = unfuse(copy.deepcopy(ours))
    return ours, plain, in_double(plain)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_backward_inside_autocast(backend: str, activation: str) -> None:
    """Forward in float32 outside, backward within: no further from float64 than PyTorch, which rounds to 16 bits."""
    x, results = torch.randn(64, 3), []
    for module, input in zip(twins(activation), (x, x, x.double()), strict=True):
        loss = module(input).square().mean()
        with torch.autocast(torch.get_default_device().type, torch.bfloat16, enabled=input is x):
            results.append(torch.autograd.grad(loss, list(module.parameters())))
    ours, torchs, exact = results
    assert all(a.dtype == b.dtype == torch.float32 for a, b in zip(ours, torchs, strict=True))
    assert overall_error(ours, exact) <= 2 * overall_error(torchs, exact) + 1e-6


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_saved_tensor_hooks_may_change_strides(backend: str, activation: str) -> None:
    x = torch.randn(5, 3)
    results = []
    for module, input in zip(twins(activation), (x, x, x.double()), strict=True):
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: t.t().contiguous() if t.dim() == 2 else t, lambda t: t.t() if t.dim() == 2 else t
        ):
            y = module(input)
        results.append(torch.autograd.grad(y.sum(), list(module.parameters())))
    assert_within_bound(*results)


def test_the_output_may_be_changed_where_torch_allows_it(backend: str) -> None:
    x = torch.randn(5, 3, requires_grad=True)
    for output in (None, "silu", "gelu"):
        module = MLP([3, 4, 2], output_activation=output)
        plain, wide = unfuse(copy.deepcopy(module)), as_double(x)
        pairs = ((module, x), (plain, x), (in_double(plain), wide))
        assert_within_bound(*(torch.autograd.grad(m(t).mul_(2).sum(), t) for m, t in pairs))


@pytest.mark.parametrize("activation", [nn.LeakyReLU(0.2), nn.SiLU(), nn.Identity()], ids=str)
def test_in_place_dropout_after_fused_layers(backend: str, activation: nn.Module) -> None:
    plain = nn.Sequential(nn.Linear(3, 8), activation, nn.Dropout(0.5, inplace=True), nn.Linear(8, 1))
    plain.double()  # where both draw the same mask
    fused, x, results = fuse(copy.deepcopy(plain)), torch.randn(6, 3, dtype=torch.float64), []
    for module in (fused, plain):
        torch.manual_seed(1)
        results.append(torch.autograd.grad(module(x).sum(), list(module.parameters())))
    assert_close_in_float64(*results)


def test_slices_keep_the_names(backend: str) -> None:
    module = MLP([2, 3, 4, 1])
    expected = unfuse(copy.deepcopy(module))[2:]
    assert list(module[2:].state_dict()) == list(expected.state_dict())
    assert isinstance(module[2:], FusedSequential)


def test_what_the_fused_layers_do_not_take_runs_as_it_is(backend: str) -> None:
    complex_model = nn.Sequential(nn.Linear(3, 2, dtype=torch.cdouble), nn.Tanh())
    x = torch.randn(4, 3, dtype=torch.cdouble)
    expected = complex_model(x)
    assert_close_in_float64(fuse(complex_model)(x), expected)

    one_bias = nn.Sequential(nn.Linear(3, 2), nn.Tanh()).double()
    one_bias[0].bias = nn.Parameter(torch.ones(1, dtype=torch.float64))
    x = torch.randn(4, 3, dtype=torch.float64)
    expected = one_bias(x)
    assert_close_in_float64(fuse(one_bias)(x), expected)

    nested = torch.nested.nested_tensor([torch.randn(n, 3, dtype=torch.float64) for n in (2, 5)])
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).double()
    expected = model(nested)
    for ours, torchs in zip(fuse(model)(nested).unbind(), expected.unbind(), strict=True):
        assert_close_in_float64(ours, torchs)


def test_fusing_a_class_that_registers_its_subclasses(backend: str) -> None:
    seen = []

    class Registered(nn.Sequential):
        def __init_subclass__(cls, *, key: str, **keywords) -> None:
            seen.append(key)
            super().__init_subclass__(**keywords)

    class Model(Registered, key="model"):
        pass

    model = Model(nn.Linear(3, 2), nn.ReLU())
    x = torch.randn(4, 3)
    expected, exact = model(x), nn.Sequential(*in_double(model))(x.double())
    assert_within_bound(fuse(model)(x), expected, exact)
    assert seen == ["model"]


class Centred(MLP):
    """Looks across the batch, in a forward of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y - y.mean(dim=0)


def test_a_module_with_a_forward_of_its_own_is_not_one_fused_run(compiled: None) -> None:
    assert is_fully_fused(MLP([2, 3, 1]))
    assert not is_fully_fused(Centred([2, 3, 1]))
    overridden = MLP([2, 3, 1])
    overridden.forward = lambda x: x
    assert not is_fully_fused(overridden)
    assert type(unfuse(Centred([2, 3, 1]))) is Centred


@pytest.mark.deep_on("reference", "simt")
@pytest.mark.parametrize("name", ["grad", "jacrev", "jvp"])
def test_compiled_transforms(backend: str, name: str) -> None:
    torch._dynamo.reset()
    w, b = torch.randn(2, 3, dtype=torch.double), torch.randn(2, dtype=torch.double)
    x = torch.randn(4, 3, dtype=torch.double)

    def ours(x: torch.Tensor) -> torch.Tensor:
        return mlp(x, [w], [b], ["tanh"]).sum()

    def torchs(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ w.t() + b).sum()

    def transformed(function):
        if name == "jvp":
            return lambda x: torch.func.jvp(function, (x,), (x,))[1]
        return getattr(torch.func, name)(function)

    compiled_function = torch.compile(transformed(ours), backend="aot_eager")
    assert_close_in_float64(compiled_function(x), transformed(torchs)(x))
