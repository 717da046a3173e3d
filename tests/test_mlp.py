"""linear_act and mlp against torch's linear and activations, on every backend."""

from __future__ import annotations

import functools
import inspect
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from conformance import (
    ACTIVATION_MODULES,
    ACTIVATIONS,
    as_double,
    assert_close_in_float64,
    assert_within_bound,
    check_against_torch,
    derivatives,
    overall_error,
    results_of_both,
)
from hypothesis import given
from hypothesis import strategies as st

from fastgan.functional import linear_act, mlp
from fastgan.reference import ACTIVATIONS as DEFINITIONS


def torch_mlp(input, weights, biases, activations, slopes):
    for weight, bias, activation, slope in zip(weights, biases, activations, slopes, strict=True):
        input = DEFINITIONS[activation].function(F.linear(input, weight, bias), slope)
    return input


def parameters(sizes: list[int], dtype: torch.dtype, bias: bool = True) -> tuple[list, list]:
    weights = [(torch.randn(o, i) / max(1, i) ** 0.5).to(dtype) for i, o in pairwise(sizes)]
    biases = [torch.randn(o).to(dtype) if bias else None for o in sizes[1:]]
    return weights, biases


def flat(function, activations: list[str], slopes: list[float], has_bias: list[bool]):
    """mlp as a function of tensors alone: input, weights, then the biases that there are."""

    def run(input, *tensors):
        count = len(activations)
        given = iter(tensors[count:])
        biases = [next(given) if has else None for has in has_bias]
        return function(input, list(tensors[:count]), biases, activations, slopes)

    return run


def check(input, sizes, activations, slopes=None, bias: bool = True) -> None:
    slopes = slopes or [0.2] * len(activations)
    weights, biases = parameters(sizes, input.dtype, bias)
    tensors = [input, *weights, *(b for b in biases if b is not None)]
    has_bias = [b is not None for b in biases]
    ours, torchs = (flat(f, activations, slopes, has_bias) for f in (mlp, torch_mlp))
    check_against_torch(ours, torchs, tensors, (*input.shape[:-1], sizes[-1]))


def test_the_table_of_activations() -> None:
    x = torch.linspace(-30, 30, 500)
    for name, activation in DEFINITIONS.items():
        assert activation.module.__module__ == "torch.nn.modules." + ("linear" if name == "identity" else "activation")
        assert activation.module.__name__.lower() == name.replace("_", "")
        assert torch.equal(activation(x, 0.2), ACTIVATION_MODULES[name]()(x))
        if name != "identity":  # which takes any options and ignores them
            given = inspect.signature(activation.module).parameters.values()
            given = [option for option in given if option.default is not inspect.Parameter.empty]
            assert activation.options == {option.name: option.default for option in given}
            module = activation.module()
            assert {option: getattr(module, option) for option in activation.options} == activation.options
    slope = DEFINITIONS["leaky_relu"].function
    assert torch.equal(slope(x, 0.3), torch.nn.LeakyReLU(0.3)(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (33, 7), (64, 1)], ids=str)
def test_one_layer(backend: str, shape, activation: str, dtype: torch.dtype) -> None:
    check(torch.randn(shape, dtype=dtype), [shape[1], 5], [activation])
    check_of_eight(shape, activation, dtype)


def check_of_eight(shape: tuple[int, int], activation: str, dtype: torch.dtype) -> None:
    """Layers of one output without a bias, held to the bound together.

    The gradient of a weight may be a single number then, a sum over the rows. PyTorch's error of one such sum is luck:
    of 3,000 each, 25 to 37 of ours were over twice of it plus 1e-6, and the root mean square of all our errors was 1.03
    to 1.10 times PyTorch's.
    """
    found = []
    for _ in range(8):
        weights, _ = parameters([shape[1], 1], dtype, False)
        ours, torchs = (flat(f, [activation], [0.2], [False]) for f in (mlp, torch_mlp))
        found.append(results_of_both(ours, torchs, [torch.randn(shape, dtype=dtype), *weights], (shape[0], 1)))
    assert_within_bound(*([torch.stack(draws) for draws in zip(*way, strict=True)] for way in zip(*found, strict=True)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_one_layer_in_16_bits(backend: str, activation: str, dtype: torch.dtype) -> None:
    """Values and gradients; a second gradient of a piecewise linear function turns on single roundings of z."""
    input, weight, bias = (torch.randn(s).to(dtype) for s in ((64, 33), (17, 33), (17,)))
    weight = weight / 33**0.5
    cotangents = [torch.randn(64, 17).to(dtype), *(torch.zeros_like(t) for t in (input, weight, bias))]
    ours = functools.partial(linear_act, activation=activation, negative_slope=0.2)

    def torchs(x, w, b):
        return DEFINITIONS[activation].function(F.linear(x, w, b), 0.2)

    results = [derivatives(f, (input, weight, bias), cotangents)[:4] for f in (ours, torchs)]
    wide = [t.double() for t in (input, weight, bias)]
    exact = derivatives(torchs, wide, [c.double() for c in cotangents])[:4]
    if activation in (
        "relu",
        "leaky_relu",
    ):  # where z rounds to the other side of the kink, the slope is the other
        same = (results[0][0] > 0) == (exact[0] > 0)
        assert same.float().mean() > 0.99
        results, exact = [r[:1] for r in results], exact[:1]
    assert_within_bound(results[0], results[1], exact)


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0, 2.5, -0.5])
def test_leaky_relu_of_any_slope(backend: str, slope: float) -> None:
    check(torch.randn(9, 5, dtype=torch.double), [5, 8, 3], ["leaky_relu"] * 2, [slope, slope])


def test_the_slope_of_leaky_relu_is_torchs_where_none_is_given(backend: str) -> None:
    x, weight = torch.randn(9, 5), torch.randn(3, 5)
    expected, exact = (F.leaky_relu(F.linear(*given)) for given in ((x, weight), (x.double(), weight.double())))
    assert (expected < 0).any()
    assert_within_bound(linear_act(x, weight, None, "leaky_relu"), expected, exact)
    assert_within_bound(mlp(x, [weight], None, ["leaky_relu"]), expected, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("hidden", ACTIVATIONS)
@pytest.mark.parametrize("output", ["identity", "tanh", "leaky_relu"])
def test_stack(backend: str, output: str, hidden: str, dtype: torch.dtype) -> None:
    check(torch.randn(33, 7, dtype=dtype), [7, 33, 17, 5], [hidden, hidden, output])


@pytest.mark.parametrize("shape", [(5,), (0, 5), (2, 3, 5), (2, 0, 5), (1, 1, 1, 5)], ids=str)
@pytest.mark.parametrize("activation", ["identity", "gelu"])
def test_leading_dimensions(backend: str, shape, activation: str) -> None:
    check(torch.randn(shape), [5, 4, 3], [activation, "tanh"])


@pytest.mark.parametrize("sizes", [[0, 4, 3], [4, 0, 3], [4, 3, 0]], ids=str)
def test_widths_of_zero(backend: str, sizes: list[int]) -> None:
    check(torch.randn(6, sizes[0]), sizes, ["relu", "identity"])


@pytest.mark.parametrize("width", [1, 7, 33, 257, 4099])
def test_ragged_widths(backend: str, width: int) -> None:
    check(torch.randn(9, 3), [3, width, 2], ["silu", "identity"])


def test_many_rows(backend: str) -> None:
    weights, biases = parameters([3, 40, 1], torch.float32)
    x = torch.randn(5000, 3)
    results = []
    for function, dtype in ((mlp, x.dtype), (torch_mlp, x.dtype), (torch_mlp, torch.float64)):
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in (x, *weights, *biases)]
        y = function(leaves[0], leaves[1:3], leaves[3:], ["tanh", "identity"], [0.0, 0.0])
        results.append([y.detach(), *torch.autograd.grad(y.sum(), leaves)])
    assert_within_bound(*results)


def test_non_contiguous(backend: str) -> None:
    x, weight, bias = torch.randn(5, 8).t(), torch.randn(10, 6)[::2, 1:].t().t(), torch.randn(20)[::4]

    def torchs(input, weight, bias, _):
        return torch.tanh(F.linear(input, weight, bias))

    for input in (x, x[::2], x[:1].expand(4, -1), x.unsqueeze(1).expand(-1, 3, -1)):
        given = (input, weight, bias)
        results = [f(*given, "tanh") for f in (linear_act, torchs)]
        assert_within_bound(*results, torchs(*as_double(given), "tanh"))
    gradient, start = torch.randn(5, 8).t(), torch.randn(8, 5)
    results = []
    for function, dtype in ((linear_act, x.dtype), (torchs, x.dtype), (torchs, torch.float64)):
        leaf = start.to(dtype, copy=True).requires_grad_()
        y = function(leaf, weight.to(dtype), bias.to(dtype), "tanh")
        results.append(torch.autograd.grad(y, leaf, gradient[:, :5].to(dtype))[0])
    assert_within_bound(*results)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(backend: str, activation: str) -> None:
    weights, biases = parameters([3, 5, 2], torch.double)
    tensors = [torch.randn(4, 3, dtype=torch.double), *weights, *biases]
    tensors = [t.requires_grad_() for t in tensors]
    run = flat(mlp, [activation, activation], [0.2, 0.2], [True, True])
    assert torch.autograd.gradcheck(run, tensors)
    assert torch.autograd.gradgradcheck(run, tensors)


@pytest.mark.parametrize("activation", ["tanh", "softplus", "relu"])
def test_third_derivatives(backend: str, activation: str) -> None:
    weights, biases = parameters([3, 6, 1], torch.double)
    tensors = [torch.randn(4, 3, dtype=torch.double), *weights, *biases]
    results = []
    for function in (mlp, torch_mlp):
        leaves = [t.clone().requires_grad_() for t in tensors]
        value = flat(function, [activation, "tanh"], [0.0, 0.0], [True, True])(*leaves).square().sum()
        for _ in range(3):
            gradients = torch.autograd.grad(value, leaves, create_graph=True)
            value = sum((g.square() * (i + 1)).sum() for i, g in enumerate(gradients))
        results.append(gradients)
    assert_close_in_float64(*results)


@pytest.mark.parametrize("wanted", ["input", "weight0", "weight1", "bias0", "bias1", "weight1 bias1", "input bias0"])
def test_gradients_of_some_alone(backend: str, wanted: str) -> None:
    names = ["input", "weight0", "weight1", "bias0", "bias1"]
    weights, biases = parameters([3, 6, 2], torch.double)
    tensors = [torch.randn(4, 3, dtype=torch.double), *weights, *biases]
    results = []
    for function in (mlp, torch_mlp):
        leaves = [t.clone().requires_grad_(n in wanted.split()) for n, t in zip(names, tensors, strict=True)]
        y = flat(function, ["softplus", "tanh"], [0.0, 0.0], [True, True])(*leaves)
        y.square().sum().backward()
        results.append([leaf.grad for leaf in leaves])
    assert_close_in_float64(*results)
    # The same, where all are recorded and autograd.grad asks for some.
    leaves = [t.clone().requires_grad_() for t in tensors]
    y = flat(mlp, ["softplus", "tanh"], [0.0, 0.0], [True, True])(*leaves)
    asked = [leaf for n, leaf in zip(names, leaves, strict=True) if n in wanted.split()]
    assert_close_in_float64(
        list(torch.autograd.grad(y.square().sum(), asked)), [g for g in results[0] if g is not None]
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_second_order_paths_that_do_not_exist_are_none_as_in_torch(backend: str, activation: str) -> None:
    weights, biases = parameters([3, 6, 1], torch.double)
    results = []
    for function in (mlp, torch_mlp):
        leaves = [t.clone().requires_grad_() for t in (torch.randn(4, 3, dtype=torch.double), *weights, *biases)]
        y = flat(function, [activation, "identity"], [0.2, 0.2], [True, True])(*leaves)
        (gradient,) = torch.autograd.grad(y.sum(), leaves[0], create_graph=True)
        results.append(torch.autograd.grad(gradient.square().sum(), leaves, allow_unused=True))
    assert [g is None for g in results[0]] == [g is None for g in results[1]]


def test_same_bits_every_time(backend: str) -> None:
    weights, biases = parameters([64, 256, 128, 1], torch.float32)
    x = torch.randn(128, 64)
    results = []
    for _ in range(3):
        leaves = [t.clone().requires_grad_() for t in (x, *weights, *biases)]
        y = flat(mlp, ["leaky_relu", "gelu", "identity"], [0.2] * 3, [True] * 3)(*leaves)
        results.append([y.detach(), *torch.autograd.grad(y.sum(), leaves)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("extreme", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 0.0, -0.0])
def test_nan_and_infinity_end_where_torchs_do(backend: str, extreme: float, activation: str) -> None:
    # One element at a time: PyTorch's vectorised gelu of infinity is NaN, that of a single element is infinity.
    results = []

    def torchs(x, w, b, a):
        return DEFINITIONS[a].function(F.linear(x, w, b), 0.01)

    for function, dtype in ((linear_act, torch.float32), (torchs, torch.float32), (torchs, torch.float64)):
        x = torch.full((1, 1), extreme, dtype=torch.float32).to(dtype).requires_grad_()
        y = function(x, torch.ones(1, 1, dtype=dtype), None, activation)
        results.append((y.detach(), torch.autograd.grad(y.sum(), x)[0]))
    assert_within_bound(*results)


def test_no_layers_and_no_biases(backend: str) -> None:
    x = torch.randn(3, 4)
    assert mlp(x, [], [], []) is x
    weight = torch.randn(2, 4)
    exact = torch.relu(x.double() @ weight.double().t())
    assert_within_bound(mlp(x, [weight], None, ["relu"]), torch.relu(x @ weight.t()), exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(backend: str, dtype: torch.dtype) -> None:
    weights, biases = parameters([8, 16, 4], torch.float32)
    leaves = [t.requires_grad_() for t in (torch.randn(5, 8), *weights, *biases)]
    with torch.autocast(torch.get_default_device().type, dtype):
        y = flat(mlp, ["tanh", "identity"], [0.0, 0.0], [True, True])(*leaves)
        twin = torch_mlp(leaves[0], weights, biases, ["tanh", "identity"], [0.0, 0.0])
    assert y.dtype == twin.dtype == dtype
    wide = as_double((leaves[0], weights, biases))
    exact = torch_mlp(*wide, ["tanh", "identity"], [0.0, 0.0])
    assert overall_error(y, exact) <= 2 * overall_error(twin, exact) + 1e-6
    y.float().sum().backward()
    assert all(leaf.grad.dtype == torch.float32 for leaf in leaves)


def test_changing_a_weight_before_backward_is_an_error(backend: str) -> None:
    weights, biases = parameters([3, 4, 2], torch.float32)
    weights = [w.requires_grad_() for w in weights]
    y = mlp(torch.randn(5, 3, requires_grad=True), weights, biases, ["tanh", "identity"])
    with torch.no_grad():
        biases[0].add_(1)  # the biases are not read again
        weights[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


X, W, B = torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)
BAD = [
    ((X, torch.ones(4, 5), None), ValueError, "activation must be one of identity, relu.*'swish'", "swish"),
    ((X, torch.ones(4, 5), None), RuntimeError, r"weight of shape \(4, 5\) must have 3 columns", "relu"),
    ((X, torch.ones(3), None), RuntimeError, r"weight must have shape \(out, in\), not \(3,\)", "relu"),
    ((X, W, torch.ones(5)), RuntimeError, r"bias must have shape \(4,\), not \(5,\)", "relu"),
    ((X, W.double(), None), RuntimeError, "weight is torch.float64 and input is torch.float32", "relu"),
    ((X, W, B.half()), RuntimeError, "bias is torch.float16", "relu"),
    ((X.long(), W, B), RuntimeError, "input must have a floating-point dtype.*int64", "relu"),
    ((X, W.to("meta"), B), RuntimeError, "weight is on meta and input is on cpu", "relu"),
    ((torch.tensor(1.0), W, B), RuntimeError, r"input must have shape \(..., in\), not \(\)", "relu"),
    ((None, W, B), TypeError, "input must be a Tensor, not NoneType", "relu"),
]


@pytest.mark.parametrize(("arguments", "error", "message", "activation"), BAD)
def test_bad_layer(backend: str, arguments, error: type[Exception], message: str, activation: str) -> None:
    with pytest.raises(error, match=message):
        linear_act(*arguments, activation)


def test_bad_stack(backend: str) -> None:
    x, w, b = torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)  # those above may be on another device
    with pytest.raises(ValueError, match="activations must have one entry for each of the 2 weights, not 1"):
        mlp(x, [w, torch.ones(1, 4)], [None, None], ["relu"])
    with pytest.raises(ValueError, match=r"biases must have one entry.*not 1"):
        mlp(x, [w, torch.ones(1, 4)], [None], ["relu", "relu"])
    with pytest.raises(RuntimeError, match=r"weights\[1\] of shape \(1, 5\) must have 4 columns"):
        mlp(x, [w, torch.ones(1, 5)], None, ["relu", "relu"])
    with pytest.raises(ValueError, match=r"activations\[1\] must be one of.*'mish'"):
        mlp(x, [w, torch.ones(1, 4)], None, ["relu", "mish"])
    with pytest.raises(ValueError, match="negative_slope must be finite, not nan"):
        linear_act(x, w, b, "leaky_relu", float("nan"))


@given(
    rows=st.integers(0, 70),
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=5),
    data=st.data(),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_stack(backend: str, rows: int, sizes: list[int], data, bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    activations = [data.draw(st.sampled_from(ACTIVATIONS)) for _ in sizes[1:]]
    check(torch.randn(rows, sizes[0], dtype=torch.double), sizes, activations, bias=bias)
