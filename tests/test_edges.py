"""What surrounds a call: autocast around backward, hooks on saved tensors, compiled transforms, in-place neighbours."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastgan.functional import mlp
from fastgan.nn import MLP, FusedSequential, fuse, is_fully_fused, unfuse

ACTIVATIONS = ["tanh", "silu", "leaky_relu", "relu"]


def twins(activation: str = "tanh") -> tuple[MLP, nn.Module]:
    ours = MLP([3, 8, 1], activation)
    return ours, unfuse(copy.deepcopy(ours))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_backward_inside_autocast(backend: str, activation: str) -> None:
    """Forward in float32 outside, backward within: PyTorch's float32 gradients up to 16-bit rounding."""
    x, results = torch.randn(64, 3), []
    for module in twins(activation):
        loss = module(x).square().mean()
        with torch.autocast(torch.get_default_device().type, torch.bfloat16):
            results.append(torch.autograd.grad(loss, list(module.parameters())))
    for ours, torchs in zip(*results, strict=True):
        assert ours.dtype == torchs.dtype == torch.float32
        torch.testing.assert_close(ours, torchs, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_saved_tensor_hooks_may_change_strides(backend: str, activation: str) -> None:
    x = torch.randn(5, 3)
    results = []
    for module in twins(activation):
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: t.t().contiguous() if t.dim() == 2 else t, lambda t: t.t() if t.dim() == 2 else t
        ):
            y = module(x)
        results.append(torch.autograd.grad(y.sum(), list(module.parameters())))
    torch.testing.assert_close(*results)


def test_the_output_may_be_changed_where_torch_allows_it(backend: str) -> None:
    x = torch.randn(5, 3, requires_grad=True)
    for output in (None, "silu", "gelu"):
        module = MLP([3, 4, 2], output_activation=output)
        gradients = [torch.autograd.grad(m(x).mul_(2).sum(), x)[0] for m in (module, unfuse(copy.deepcopy(module)))]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("activation", [nn.LeakyReLU(0.2), nn.SiLU(), nn.Identity()], ids=str)
def test_in_place_dropout_after_fused_layers(backend: str, activation: nn.Module) -> None:
    plain = nn.Sequential(nn.Linear(3, 8), activation, nn.Dropout(0.5, inplace=True), nn.Linear(8, 1))
    fused, x, results = fuse(copy.deepcopy(plain)), torch.randn(6, 3), []
    for module in (fused, plain):
        torch.manual_seed(1)
        results.append(torch.autograd.grad(module(x).sum(), list(module.parameters())))
    torch.testing.assert_close(*results)


def test_slices_keep_the_names(backend: str) -> None:
    module = MLP([2, 3, 4, 1])
    expected = unfuse(copy.deepcopy(module))[2:]
    assert list(module[2:].state_dict()) == list(expected.state_dict())
    assert isinstance(module[2:], FusedSequential)


def test_what_the_fused_layers_do_not_take_runs_as_it_is(backend: str) -> None:
    complex_model = nn.Sequential(nn.Linear(3, 2, dtype=torch.cfloat), nn.Tanh())
    x = torch.randn(4, 3, dtype=torch.cfloat)
    expected = complex_model(x)
    torch.testing.assert_close(fuse(complex_model)(x), expected)

    one_bias = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    one_bias[0].bias = nn.Parameter(torch.ones(1))
    x = torch.randn(4, 3)
    expected = one_bias(x)
    torch.testing.assert_close(fuse(one_bias)(x), expected)

    nested = torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(5, 3)])
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    expected = model(nested)
    for ours, torchs in zip(fuse(model)(nested).unbind(), expected.unbind(), strict=True):
        torch.testing.assert_close(ours, torchs)


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
    expected = model(x)
    torch.testing.assert_close(fuse(model)(x), expected)
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
    torch.testing.assert_close(compiled_function(x), transformed(torchs)(x))
