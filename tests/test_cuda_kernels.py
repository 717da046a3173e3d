"""The CUDA layers on every path, in every precision, at ragged shapes: on the host model and on a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from conformance import as_double, assert_within_bound, derivatives, overall_error
from conftest import BACKENDS, run_on_or_skip
from torch import Tensor

import fastgan
from fastgan import backend as fastgan_backend
from fastgan.functional import linear_act, mlp

PATHS = ("narrow", "tiled", "library")
# batch and widths; the last are too wide for the narrow kernels, or too deep
SHAPES = {
    "ones": (1, [1, 1]),
    "small": (7, [33, 5, 3]),
    "ragged": (33, [7, 65, 129, 1]),
    "wide ends": (17, [257, 64, 300]),
    "no batch": (0, [3, 4, 2]),
    "wide": (9, [20, 300, 5]),
    "deep": (5, [4] * 11),
}


@pytest.fixture(params=[name for name in BACKENDS if name in ("simt", "cuda")], autouse=True)
def device_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with run_on_or_skip(request.param) as name:
        yield name


@contextlib.contextmanager
def layer_path(name: str) -> Iterator[None]:
    before = fastgan_backend.module.layer_path()
    fastgan_backend.module.set_layer_path(name)
    try:
        yield
    finally:
        fastgan_backend.module.set_layer_path(before)


@contextlib.contextmanager
def tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def rounded_to_tf32(x: Tensor) -> Tensor:
    """To 10 bits of mantissa, to nearest, ties away from zero."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


def stack(sizes: list[int]):
    """Ours and PyTorch's network as functions of the input, the weights and the biases."""
    names = ["leaky_relu", "gelu", "silu"] * len(sizes)
    functions = {"leaky_relu": lambda z: F.leaky_relu(z, 0.2), "gelu": F.gelu, "silu": F.silu, "tanh": F.tanh}
    names = [*names[: len(sizes) - 2], "tanh"]

    def ours(x: Tensor, *parameters: Tensor) -> Tensor:
        count = len(sizes) - 1
        return mlp(x, parameters[:count], parameters[count:], names, [0.2] * count)

    def torchs(x: Tensor, *parameters: Tensor) -> Tensor:
        count = len(sizes) - 1
        for weight, bias, name in zip(parameters[:count], parameters[count:], names, strict=True):
            x = functions[name](F.linear(x, weight, bias))
        return x

    return ours, torchs


def tensors(batch: int, sizes: list[int], dtype: torch.dtype) -> list[Tensor]:
    weights = [(torch.randn(o, i) / i**0.5).to(dtype) for i, o in pairwise(sizes)]
    return [torch.randn(batch, sizes[0]).to(dtype), *weights, *(torch.randn(o).to(dtype) for o in sizes[1:])]


def derived(shape: str, dtype: torch.dtype, path: str) -> list[list[Tensor]]:
    """Value, gradients and second gradients of a network: ours, PyTorch's and the exact ones."""
    batch, sizes = SHAPES[shape]
    inputs = tensors(batch, sizes, dtype)
    cotangents = [torch.randn(batch, sizes[-1]).to(dtype), *(torch.randn(x.shape).to(dtype) for x in inputs)]
    ours, torchs = stack(sizes)
    with layer_path(path):
        result = derivatives(ours, inputs, cotangents)
    exact = derivatives(torchs, [x.double() for x in inputs], [c.double() for c in cotangents])
    return [result, derivatives(torchs, inputs, cotangents), exact]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_networks(dtype: torch.dtype, path: str, shape: str) -> None:
    """Value, gradients and second gradients."""
    assert_within_bound(*derived(shape, dtype, path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", [pytest.param(s, marks=pytest.mark.deep) if s == "deep" else s for s in SHAPES])
def test_networks_of_16_bits(dtype: torch.dtype, path: str, shape: str) -> None:
    """Each error is a few roundings, and the largest of four elements is luck, in PyTorch's too: so the value, the
    gradients and the second gradients are held to the bound each as a whole, and in the median of several networks.

    The fewer roundings an error as a whole is made of, the more networks it takes for a stable median.
    """
    networks = {"ones": 101, "small": 27, "deep": 51}.get(shape, 9)
    errors = torch.zeros(networks, 2, 3, dtype=torch.float64)
    layers = len(SHAPES[shape][1]) - 1
    for i in range(len(errors)):
        *both, exact = derived(shape, dtype, path)
        for j, result in enumerate(both):
            for k, group in enumerate((slice(0, 1), slice(1, 2 + 2 * layers), slice(2 + 2 * layers, None))):
                errors[i, j, k] = overall_error(result[group], exact[group])
    ours, torchs = errors.median(0).values
    assert (ours <= 1.5 * torchs + 1e-6).all(), errors


@pytest.mark.parametrize("path", PATHS)
def test_first_order_alone(path: str) -> None:
    """Without create_graph nothing is kept for a second backward, and the whole backward may be one launch."""
    inputs = [x.requires_grad_() for x in tensors(33, [7, 65, 129, 2], torch.float32)]
    ours, torchs = stack([7, 65, 129, 2])
    cotangent = torch.randn(33, 2)
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    exact = torch.autograd.grad(torchs(*doubles), doubles, cotangent.double())
    with layer_path(path):
        result = torch.autograd.grad(ours(*inputs), inputs, cotangent)
    assert_within_bound(result, torch.autograd.grad(torchs(*inputs), inputs, cotangent), exact)


@pytest.mark.parametrize("path", ["narrow", "tiled"])
@pytest.mark.parametrize("frozen", ["input", "weights", "biases", "first layer"])
def test_what_needs_no_gradient_gets_none(path: str, frozen: str) -> None:
    inputs = tensors(19, [5, 33, 4], torch.float32)
    places = {"input": [0], "weights": [1, 2], "biases": [3, 4], "first layer": [0, 1, 3]}[frozen]
    wanted = [x.requires_grad_() for i, x in enumerate(inputs) if i not in places]
    ours, torchs = stack([5, 33, 4])
    with layer_path(path):
        result = torch.autograd.grad(ours(*inputs).sum(), wanted)
    wide = as_double(inputs)
    exact = torch.autograd.grad(torchs(*wide).sum(), [x for x in wide if x.requires_grad])
    assert_within_bound(result, torch.autograd.grad(torchs(*inputs).sum(), wanted), exact)


@pytest.mark.parametrize("layout", ["transposed weight", "row offset", "expanded", "strided"])
@pytest.mark.parametrize("path", PATHS)
def test_memory_layouts(path: str, layout: str) -> None:
    x, w0, w1, b0, b1 = tensors(12, [6, 20, 3], torch.float32)
    if layout == "transposed weight":
        w0 = w0.t().contiguous().t()
    elif layout == "row offset":
        x = torch.randn(73)[1:].view(12, 6)
    elif layout == "expanded":
        x = x[:1].expand(12, 6)
    else:
        x, w1 = torch.randn(12, 12)[:, ::2], torch.randn(3, 40)[:, ::2]
    inputs = [t.detach().requires_grad_() for t in (x, w0, w1, b0, b1)]
    ours, torchs = stack([6, 20, 3])
    with layer_path(path):
        result = torch.autograd.grad(ours(*inputs).square().sum(), inputs)
    wide = as_double(inputs)
    exact = torch.autograd.grad(torchs(*wide).square().sum(), wide)
    assert_within_bound(result, torch.autograd.grad(torchs(*inputs).square().sum(), inputs), exact)


@pytest.mark.parametrize(("batch", "size_in", "size_out"), [(1, 1, 1), (7, 33, 5), (33, 257, 66), (130, 7, 257)])
def test_tf32_is_the_product_of_rounded_operands(batch: int, size_in: int, size_out: int) -> None:
    """Forward, input gradient and weight gradient: exact but for the rounding to tf32 and float's accumulation."""
    x, weight = torch.randn(batch, size_in, requires_grad=True), torch.randn(size_out, size_in, requires_grad=True)
    grad = torch.randn(batch, size_out)
    with tf32(), layer_path("tiled"):
        y = linear_act(x, weight)
        results = [y.detach(), *torch.autograd.grad(y, (x, weight), grad)]
    rx, rw, rg = (rounded_to_tf32(t.detach()).double() for t in (x, weight, grad))
    for result, (a, b) in zip(results, ((rx, rw.t()), (rg, rw), (rg.t(), rx)), strict=True):
        scale = a.abs() @ b.abs() + 1e-30
        assert ((result.double() - a @ b).abs() / scale).max() < 2e-6


@pytest.mark.parametrize("path", ["narrow", "tiled"])
@pytest.mark.parametrize("shape", ["small", "ragged", "wide ends"])
def test_tf32_networks(path: str, shape: str) -> None:
    batch, sizes = SHAPES[shape]
    inputs = [x.requires_grad_() for x in tensors(batch, sizes, torch.float32)]
    ours, torchs = stack(sizes)
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    exact = torchs(*doubles)
    exact = [exact.detach(), *torch.autograd.grad(exact.sum(), doubles)]
    with layer_path(path):
        with tf32():
            fast = ours(*inputs)
            fast = [fast.detach(), *torch.autograd.grad(fast.sum(), inputs)]
        strict = ours(*inputs).detach()
    for result, e in zip(fast, exact, strict=True):
        scale = max(1.0, e.abs().max().item())
        assert (result.double() - e).abs().max() / scale < 4e-3  # a few times 2^-11
    assert (fast[0].double() - exact[0]).abs().max() > 4 * (strict.double() - exact[0]).abs().max()


@pytest.mark.parametrize("path", PATHS)
def test_the_same_bits_every_time(path: str) -> None:
    inputs = [x.requires_grad_() for x in tensors(70, [30, 130, 3], torch.float32)]
    ours, _ = stack([30, 130, 3])

    def once() -> list[Tensor]:
        y = ours(*inputs)
        loss = fastgan.functional.generator_loss(y)
        return [loss.detach(), *torch.autograd.grad(loss, inputs)]

    with layer_path(path):
        first = once()
        for _ in range(3):
            for a, b in zip(first, once(), strict=True):
                assert torch.equal(a, b)


def test_unknown_layer_path() -> None:
    with pytest.raises(ValueError, match="must be automatic, narrow, tiled or library, not fast"):
        fastgan_backend.module.set_layer_path("fast")


def test_too_many_batches_of_logits_in_one_call() -> None:
    logits = [torch.zeros(2)] * 17
    with pytest.raises(RuntimeError, match="at most 16 batches of logits a call on a GPU, not 17"):
        fastgan_backend.ops.logits_loss_forward(logits, 0, [1.0] * 17, 1.0, False, 1, False)
