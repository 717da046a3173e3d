"""Second derivatives of a whole MLP on the CPU in one parallel region (csrc/cpu/mlp_double_backward.h).

They run where the gradient by the input alone is differentiated again, as in a gradient penalty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
from conformance import ACTIVATIONS, assert_close_in_float64, assert_within_bound
from torch import Tensor

from fastgan import backend, reference
from fastgan.functional import mlp

# Two inputs, one output, fewer outputs than a tile has columns, odd widths, sums longer than one block.
SIZES = [[2, 128, 128, 1], [64, 512, 256, 1], [7, 33, 65, 3], [600, 5, 40, 9], [3, 1, 8, 2], [1, 1]]
SLOPE = 0.2


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, params=["tiled"])
def path(compiled: None, request: pytest.FixtureRequest) -> Iterator[None]:
    """Whole networks on every instruction set: without any beyond the baseline, torch's products would be chosen."""
    backend.module.set_layer_path(request.param)
    yield
    backend.module.set_layer_path("automatic")


class Network:
    """An input, weights and biases, and the gradient of the output and a direction to differentiate along."""

    def __init__(self, sizes: list[int], activations: list[str], batch: int, dtype: torch.dtype, bias: bool = True):
        self.activations = activations
        self.tensors = {"upstream": torch.randn(batch, sizes[-1]), "x": torch.randn(batch, sizes[0])}
        for i, (inputs, outputs) in enumerate(pairwise(sizes)):
            self.tensors[f"weight{i}"] = torch.randn(outputs, inputs) / inputs**0.5
            if bias:
                self.tensors[f"bias{i}"] = torch.randn(outputs)
        self.tensors = {name: x.to(dtype) for name, x in self.tensors.items()}
        self.direction = torch.randn(batch, sizes[0]).to(dtype)

    def second(
        self, function: Callable[..., Tensor] = mlp, dtype: torch.dtype | None = None, wanted: list[str] | None = None
    ) -> list[Tensor | None]:
        """The gradients of the gradient by the input, along the direction; None where there is no path."""
        tensors = {name: x.detach().to(dtype or x.dtype) for name, x in self.tensors.items()}
        for name, x in tensors.items():
            x.requires_grad_(wanted is None or name in {*wanted, "x"})
        count = len(self.activations)
        weights = [tensors[f"weight{i}"] for i in range(count)]
        biases = [tensors.get(f"bias{i}") for i in range(count)]
        y = function(tensors["x"], weights, biases, self.activations, [SLOPE] * count)
        (gradient,) = torch.autograd.grad(y, tensors["x"], tensors["upstream"], create_graph=True)
        asked = [tensors[name] for name in wanted or tensors]
        if not gradient.requires_grad:
            return [None for _ in asked]
        return list(torch.autograd.grad(gradient, asked, self.direction.to(gradient.dtype), allow_unused=True))

    def hold(self, wanted: list[str] | None = None) -> None:
        ours, plain = self.second(wanted=wanted), self.second(reference.mlp, wanted=wanted)
        assert [g is None for g in ours] == [g is None for g in plain]
        exact = self.second(reference.mlp, torch.float64, wanted)
        results = [[g for g in gradients if g is not None] for gradients in (ours, plain, exact)]
        if self.direction.dtype == torch.float64:
            assert_close_in_float64(*results[:2])
        else:
            assert_within_bound(*results)


@pytest.mark.parametrize("batch", [1, 31, 64, 100, 1030])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_threads_agree(sizes: list[int], batch: int) -> None:
    """The same bits on any number of threads."""
    network = Network(sizes, ["silu"] * (len(sizes) - 1), batch, torch.float32)
    results = []
    for number in (1, 2, 3, 4):
        torch.set_num_threads(number)
        results.append(network.second())
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("path", ["tiled", "library"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: str, dtype: torch.dtype) -> None:
    Network([40, 130, 70, 9], [activation] * 3, 301, dtype, bias=activation != "elu").hold()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("activation", ["leaky_relu", "softplus"])
@pytest.mark.parametrize("batch", [1, 5, 129, 1100])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_size(sizes: list[int], batch: int, activation: str, dtype: torch.dtype) -> None:
    Network(sizes, [activation] * (len(sizes) - 2) + ["identity"], batch, dtype).hold()


MIXED = [
    ["tanh", "relu", "identity"],  # what is curved, below
    ["identity", "leaky_relu", "sigmoid"],  # above
    ["relu", "gelu", "relu"],  # and between
    ["silu", "identity", "elu"],
    ["identity", "identity", "identity"],
    ["relu", "identity", "relu"],
]
WANTED = [
    None,
    ["upstream"],
    ["x"],
    ["weight0"],
    ["weight1", "bias1"],
    ["weight2"],
    ["bias0", "bias2"],
    ["upstream", "bias1"],
]


@pytest.mark.parametrize("wanted", WANTED, ids=str)
@pytest.mark.parametrize("activations", MIXED, ids="-".join)
def test_some_of_them_alone(activations: list[str], wanted: list[str] | None) -> None:
    """None exactly where torch has none."""
    Network([6, 40, 33, 2], activations, 37, torch.float64).hold(wanted)


@pytest.mark.parametrize("activations", MIXED, ids="-".join)
def test_the_op_is_zero_where_there_is_no_path(activations: list[str]) -> None:
    """Called directly it gives all that is asked for, on either path."""
    network = Network([6, 40, 33, 2], activations, 37, torch.float64)
    x, upstream = network.tensors["x"], network.tensors["upstream"]
    weights, biases = ([network.tensors[f"{kind}{i}"] for i in range(3)] for kind in ("weight", "bias"))
    call = [backend.module.activations().index(name) for name in activations], [SLOPE] * 3
    results = []
    for path in ("tiled", "library"):
        backend.module.set_layer_path(path)
        outputs = backend.ops.mlp_forward(x, weights, biases, *call)
        kept = backend.ops.mlp_backward(upstream, x, weights, outputs, *call, [1] * 7, True)[7:]
        given = [1, 0, 0, 0, 0, 0, 0]
        results.append(
            backend.ops.mlp_double_backward([network.direction], given, x, weights, outputs, kept, *call, [1] * 8)
        )
    assert [g.shape for g in results[0]] == [t.shape for t in (upstream, x, *weights, *biases)]
    assert_close_in_float64(*results)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_difference_quotients(activation: str) -> None:
    network = Network([3, 9, 1], [activation, "tanh"], 5, torch.float64)
    names = list(network.tensors)

    def gradient(*tensors: Tensor) -> Tensor:
        given = dict(zip(names, tensors, strict=True))
        y = mlp(
            given["x"],
            [given["weight0"], given["weight1"]],
            [given["bias0"], given["bias1"]],
            network.activations,
            [SLOPE] * 2,
        )
        return torch.autograd.grad(y, given["x"], given["upstream"], create_graph=True)[0]

    assert torch.autograd.gradcheck(gradient, [x.requires_grad_() for x in network.tensors.values()])


def test_memory_of_any_kind() -> None:
    """Column by column, expanded, not aligned; and leading dimensions."""
    network = Network([5, 40, 33, 2], ["gelu", "relu", "tanh"], 42, torch.float64)
    expected = network.second()
    for name, x in network.tensors.items():
        network.tensors[name] = torch.cat([x.new_zeros(1), x.t().flatten()])[1:].view(x.t().shape).t()
    direction = network.direction
    network.direction = direction.t().contiguous().t()
    assert all(map(torch.equal, network.second(), expected))
    for name in ("x", "upstream"):
        network.tensors[name] = network.tensors[name].reshape(2, 21, -1)
    network.direction = direction.view(2, 21, 5)
    for ours, flat in zip(network.second(), expected, strict=True):
        assert torch.equal(ours.reshape(flat.shape), flat)
    network.direction = direction[0].expand(2, 21, 5)
    network.hold()


@pytest.mark.parametrize("extreme", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_and_infinity_end_where_those_of_torchs_products_do(activation: str, extreme: float) -> None:
    reached = False
    for name in ("x", "upstream", "weight0", "weight1"):
        network = Network([6, 40, 35, 2], [activation] * 3, 37, torch.float32)
        network.tensors[name][1, 0] = extreme
        results = []
        for path in ("tiled", "library"):
            backend.module.set_layer_path(path)
            results.append([g for g in network.second() if g is not None])
        reached = reached or not all(g.isfinite().all() for g in results[0])
        for ours, torchs in zip(*results, strict=True):
            assert torch.equal(ours.isfinite(), torchs.isfinite()), name
            assert torch.equal(ours.isnan(), torchs.isnan()), name
    assert reached


def test_a_graph_that_is_kept_serves_twice() -> None:
    network = Network([6, 40, 33, 1], ["silu", "tanh", "identity"], 37, torch.float32)
    x, w0, w1, w2 = (network.tensors[name].requires_grad_() for name in ("x", "weight0", "weight1", "weight2"))
    y = mlp(x, [w0, w1, w2], None, network.activations, [SLOPE] * 3)
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    penalty = gradient.square().sum()
    first = torch.autograd.grad(penalty, [x, w0, w1, w2], retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(penalty, [x, w0, w1, w2])))
