"""torch.func's transforms, forward-mode AD and double backward go through every op, as through its PyTorch twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ops import OPS, Op
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import fastgan

pytestmark = pytest.mark.usefixtures("backend")

Transform = Callable[[Callable[..., Tensor], list[Tensor]], Any]


def scalar(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Of any output a number, in which every element counts differently."""

    def run(*tensors: Tensor) -> Tensor:
        value = function(*tensors)
        return (value.flatten() * torch.linspace(1.0, 2.0, value.numel(), dtype=value.dtype)).sum()

    return run


def everything(tensors: list[Tensor]) -> tuple[int, ...]:
    return tuple(range(len(tensors)))


def with_dual_numbers(function: Callable[..., Tensor], tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
    with forward_ad.dual_level():
        out = function(*(forward_ad.make_dual(t, t.cos()) for t in tensors))
        return tuple(forward_ad.unpack_dual(out))


TRANSFORMS: dict[str, Transform] = {
    "grad": lambda f, x: grad(scalar(f), everything(x))(*x),
    "grad of grad": lambda f, x: grad(lambda *y: scalar(grad(scalar(f)))(*y), everything(x))(*x),
    "vjp": lambda f, x: (lambda out, pull: pull(torch.ones_like(out)))(*vjp(f, *x)),
    "jvp": lambda f, x: jvp(f, tuple(x), tuple(t.cos() for t in x)),
    "jacrev": lambda f, x: jacrev(f, everything(x))(*x),
    "jacfwd": lambda f, x: jacfwd(f, everything(x))(*x),
    "hessian": lambda f, x: hessian(scalar(f), everything(x))(*x),
    "vmap": lambda f, x: vmap(f)(*(torch.stack([t, -t, 2 * t]) for t in x)),
    "vmap of the first": lambda f, x: vmap(f, in_dims=(0, *[None] * (len(x) - 1)))(torch.stack([x[0], -x[0]]), *x[1:]),
    "vmap of grad": lambda f, x: vmap(grad(scalar(f), everything(x)))(*(torch.stack([t, -t]) for t in x)),
    "dual numbers": with_dual_numbers,
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_transform(op: Op, transform: Transform) -> None:
    inputs = op.inputs()
    torch.testing.assert_close(transform(op.ours, inputs), transform(op.torchs, inputs))


@pytest.mark.parametrize("name", OPS)
def test_batched_gradients(backend: str, name: str) -> None:
    """autograd.grad(is_grads_batched=True) runs backward under vmap, outside any transform's forward."""
    op = OPS[name]
    inputs = [t.requires_grad_() for t in op.inputs()]
    results = []
    for function in (op.ours, op.torchs):
        value = function(*inputs)
        cotangents = torch.linspace(-1, 1, 3 * value.numel(), dtype=value.dtype).view(3, *value.shape)
        results.append(torch.autograd.grad(value, inputs, cotangents, is_grads_batched=True))
    torch.testing.assert_close(*results)


def test_per_sample_gradients_of_a_module() -> None:
    """The recipe of PyTorch's tutorial: vmap over grad of functional_call."""
    ours = fastgan.nn.MLP([3, 5, 1], "tanh", dtype=torch.float64)
    plain = torch.nn.Sequential(*ours)
    x = torch.randn(7, 3, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in ours.named_parameters()}
    results = []
    for module in (ours, plain):

        def loss(values: dict[str, Tensor], sample: Tensor, module: torch.nn.Module = module) -> Tensor:
            return fastgan.functional.generator_loss(functional_call(module, values, (sample,)))

        results.append(vmap(grad(loss), in_dims=(None, 0))(parameters, x))
    torch.testing.assert_close(*results)
    assert results[0]["0.weight"].shape == (7, 5, 3)
