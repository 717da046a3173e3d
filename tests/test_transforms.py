"""torch.func's transforms, forward-mode AD and double backward go through every op, as through its PyTorch twin."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conformance import ACTIVATIONS, assert_close_in_float64
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
    assert_close_in_float64(transform(op.ours, inputs), transform(op.torchs, inputs))


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
    assert_close_in_float64(*results)


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
    assert_close_in_float64(*results)
    assert results[0]["0.weight"].shape == (7, 5, 3)


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_older_functional_interface(op: Op) -> None:
    """torch.autograd.functional, which differentiates twice through recorded backward passes, not by transforms."""
    inputs = tuple(op.inputs())
    results = []
    for function in (op.ours, op.torchs):
        number = scalar(function)
        results.append(
            [
                torch.autograd.functional.hessian(number, inputs),
                torch.autograd.functional.jacobian(function, inputs, create_graph=True),
                torch.autograd.functional.hvp(number, inputs, tuple(t.cos() for t in inputs)),
            ]
        )
    assert_close_in_float64(*results)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_transforms_of_a_module(activation: str) -> None:
    ours = fastgan.nn.MLP([3, 5, 2], activation, dtype=torch.float64)
    x, tangent = torch.randn(2, 4, 3, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in ours.named_parameters()}
    results = []
    for module in (ours, torch.nn.Sequential(*ours)):

        def loss(values: dict[str, Tensor], module: torch.nn.Module = module) -> Tensor:
            return functional_call(module, values, (x,)).square().sum()

        value, derivative = jvp(module, (x,), (tangent,))
        jacobian, curvature = jacrev(module)(x), hessian(lambda t, m=module: m(t).square().sum())(x)
        results.append([value, derivative, jacobian, curvature, grad(loss)(parameters)])
    assert_close_in_float64(*results)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_without_gradients(mode: Callable[[], Any]) -> None:
    module = fastgan.nn.MLP([3, 5, 1], "silu")
    x = torch.randn(4, 3)
    expected = module(x).detach()
    with mode():
        y = module(x)
        loss = fastgan.functional.generator_loss(y)
    assert torch.equal(y, expected)
    assert not y.requires_grad
    assert not loss.requires_grad
    assert y.is_inference() == (mode is torch.inference_mode)


def train(seed: int, device: torch.device, start: threading.Barrier | None, found: dict[int, list[Tensor]]) -> None:
    """A small GAN, its data and noise from a generator of its own."""
    with device:  # the default of the thread that asks is not that of others
        train_there(seed, start, found)


def train_there(seed: int, start: threading.Barrier | None, found: dict[int, list[Tensor]]) -> None:
    random = torch.Generator(torch.get_default_device()).manual_seed(seed)
    networks = [fastgan.nn.MLP(sizes) for sizes in ([2, 8, 3], [3, 8, 1])]
    parameters = [list(network.parameters()) for network in networks]
    with torch.no_grad():
        for p in (*parameters[0], *parameters[1]):
            p.copy_(torch.randn(p.shape, generator=random))
    step = fastgan.TrainStep(*networks, *(torch.optim.Adam(p) for p in parameters), r1_gamma=1.0, r1_every=2)
    if start:
        start.wait()
    for _ in range(15):
        step.step(torch.randn(16, 3, generator=random), noise=torch.randn(2, 16, 2, generator=random))
    found[seed] = [p.detach() for p in (*parameters[0], *parameters[1])]


def test_two_trainings_in_two_threads() -> None:
    """They end with the bits that they have one after the other."""
    device = torch.get_default_device()
    alone: dict[int, list[Tensor]] = {}
    together: dict[int, list[Tensor]] = {}
    for seed in (1, 2):
        train(seed, device, None, alone)
    start = threading.Barrier(2)
    threads = [threading.Thread(target=train, args=(seed, device, start, together)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not torch.equal(alone[1][0], alone[2][0])
    for seed in (1, 2):
        assert all(map(torch.equal, alone[seed], together[seed]))
