"""binary_cross_entropy_with_logits against torch.nn.functional's, on every backend."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from conformance import (
    DTYPES,
    REDUCTIONS,
    as_double,
    assert_close_in_float64,
    assert_within_bound,
    check_against_torch,
)
from hypothesis import given
from hypothesis import strategies as st

from fastgan.functional import binary_cross_entropy_with_logits as bce

SHAPES = [(), (1,), (7,), (33, 257), (5, 0), (0,), (2, 3, 4), (70_001,)]


def value_shape(shape: tuple[int, ...], reduction: str) -> tuple[int, ...]:
    return shape if reduction == "none" else ()


@pytest.mark.apart(lambda shape, reduction: reduction == "mean" and 0 in shape)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_torch(backend: str, shape: tuple[int, ...], reduction: str, dtype: torch.dtype) -> None:
    if reduction == "mean" and 0 in shape:
        assert bce(torch.empty(shape), torch.empty(shape)).isnan()
        return
    input, target = (4 * torch.randn(shape)).to(dtype), torch.rand(shape).to(dtype)
    ours = functools.partial(bce, reduction=reduction)
    torchs = functools.partial(F.binary_cross_entropy_with_logits, reduction=reduction)
    check_against_torch(ours, torchs, [input, target], value_shape(shape, reduction))


WEIGHT_SHAPES = [None, (), (1,), (3,), (1, 3), (4, 1), (2, 4, 3), (2, 1, 3), (1, 1, 1)]


@pytest.mark.parametrize("weight_shape", WEIGHT_SHAPES, ids=str)
@pytest.mark.parametrize("pos_weight_shape", WEIGHT_SHAPES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_broadcast_weights(backend: str, weight_shape, pos_weight_shape, reduction: str) -> None:
    shape = (2, 4, 3)
    weight = None if weight_shape is None else torch.rand(weight_shape) + 0.5
    pos_weight = None if pos_weight_shape is None else 3 * torch.rand(pos_weight_shape)

    def run(function, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        weights = [None if w is None else w.to(x.dtype) for w in (weight, pos_weight)]
        return function(x, t, weight=weights[0], pos_weight=weights[1], reduction=reduction)

    inputs = [torch.randn(shape), torch.rand(shape)]
    ours, torchs = (functools.partial(run, f) for f in (bce, F.binary_cross_entropy_with_logits))
    check_against_torch(ours, torchs, inputs, value_shape(shape, reduction))


@pytest.mark.parametrize("n", [5000, 40_000])
def test_class_weights_over_several_chunks(backend: str, n: int) -> None:
    input, target, weight, pos_weight = torch.randn(n, 3), torch.rand(n, 3), torch.rand(n, 1), torch.rand(3)
    torchs, given = F.binary_cross_entropy_with_logits, (input, target, weight)
    results = [f(*given, reduction="none", pos_weight=pos_weight) for f in (bce, torchs)]
    exact = torchs(*as_double(given), reduction="none", pos_weight=pos_weight.double())
    assert_within_bound(*results, exact)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.t(),
        lambda x: x[::2, 1::3],
        lambda x: x[:1].expand(64, -1),
        lambda x: x.flip(0),
        lambda x: x[3],
    ],
    ids=["transposed", "strided", "expanded", "flipped", "row"],
)
def test_non_contiguous(backend: str, view) -> None:
    input, target = view(torch.randn(64, 48)), view(torch.rand(64, 48))
    torchs = F.binary_cross_entropy_with_logits
    assert_within_bound(bce(input, target), torchs(input, target), torchs(input.double(), target.double()))
    base = torch.randn(64, 48)
    gradients = []
    for function, dtype in ((bce, base.dtype), (torchs, base.dtype), (torchs, torch.float64)):
        leaf = base.to(dtype, copy=True).requires_grad_()
        function(view(leaf), target.to(dtype), reduction="sum").backward()
        gradients.append(leaf.grad)
    assert_within_bound(*gradients)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("target", [0.0, 1.0, 0.25])
@pytest.mark.parametrize("logit", [1e4, -1e4, 300.0, -300.0, 0.0, math.inf, -math.inf, math.nan])
def test_extreme_logits_end_where_torchs_do(backend: str, logit: float, target: float, dtype: torch.dtype) -> None:
    results = []
    given, torchs = torch.full((5,), logit, dtype=dtype), F.binary_cross_entropy_with_logits
    for function, x in ((bce, given), (torchs, given), (torchs, given.double())):
        x = x.clone().requires_grad_()
        loss = function(x, torch.full_like(x, target), reduction="none")
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        results.append((loss.detach(), gradient))
    assert all(not math.isfinite(logit) or value.isfinite().all() for value in results[0])
    assert_within_bound(*results)


def test_small_losses_keep_their_digits(compiled: None) -> None:
    x = torch.tensor([-40.0, -20.0, 20.0, 40.0])
    t = (x > 0).float()
    exact = F.softplus(-x.double().abs())
    # Relative to the loss itself, of 4e-18 at 40: log1p, exp and the sum round to 6e-8 each, and a few of them.
    assert ((bce(x, t, reduction="none") - exact).abs() <= 1e-6 * exact).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_same_bits_every_time_on_any_number_of_threads(backend: str, reduction: str, dtype: torch.dtype) -> None:
    x, t = torch.randn(300, 301).to(dtype), torch.rand(300, 301).to(dtype)

    def run() -> list[torch.Tensor]:
        leaf = x.clone().requires_grad_()
        loss = bce(leaf, t, reduction=reduction)
        loss.sum().backward()
        return [loss.detach(), leaf.grad]

    before = torch.get_num_threads()
    results = []
    try:
        # PyTorch's own sums depend on the number of threads; the compiled ones do not.
        for threads in (1, 2, 2) if backend != "reference" else (2, 2):
            torch.set_num_threads(threads)
            results.append(run())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(backend: str, reduction: str) -> None:
    x = torch.randn(3, 4, dtype=torch.double, requires_grad=True)
    t = torch.rand(3, 4, dtype=torch.double, requires_grad=True)
    weight, pos_weight = torch.rand(4, dtype=torch.double), 2 * torch.rand(3, 1, dtype=torch.double)
    for weights in ((None, None), (weight, pos_weight)):

        def run(x: torch.Tensor, t: torch.Tensor, weights=weights) -> torch.Tensor:
            return bce(x, t, weights[0], reduction=reduction, pos_weight=weights[1])

        assert torch.autograd.gradcheck(run, (x, t))
        assert torch.autograd.gradgradcheck(run, (x, t))


def test_third_derivative(backend: str) -> None:
    results = []
    for function in (bce, F.binary_cross_entropy_with_logits):
        g = x = torch.linspace(-2, 2, 9, dtype=torch.double, requires_grad=True)
        g = function(x, torch.full_like(x, 0.3), reduction="sum")
        for _ in range(3):
            (g,) = torch.autograd.grad(g.sum(), x, create_graph=True)
        results.append(g)
    assert_close_in_float64(*results)


def test_mixed_dtypes_end_as_in_torch(backend: str) -> None:
    for a in DTYPES:
        for b in DTYPES:
            x, t = torch.randn(6).to(a), torch.rand(6).to(b)
            for reduction in REDUCTIONS:
                ours = bce(x, t, reduction=reduction)
                torchs = F.binary_cross_entropy_with_logits(x, t, reduction=reduction)
                exact = F.binary_cross_entropy_with_logits(x.double(), t.double(), reduction=reduction)
                assert_within_bound(ours, torchs, exact)


def test_autocast_computes_in_float32(backend: str) -> None:
    x = torch.randn(8, dtype=torch.bfloat16, requires_grad=True)
    t = torch.rand(8)
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        loss, twin = bce(x, t), F.binary_cross_entropy_with_logits(x, t)
    assert loss.dtype == twin.dtype == torch.float32
    assert_within_bound(loss, twin, F.binary_cross_entropy_with_logits(x.double(), t.double()))
    loss.backward()
    assert x.grad.dtype == torch.bfloat16


def test_autocast_of_mixed_dtypes_ends_as_in_torch(backend: str) -> None:
    """Autocast leaves float64 alone, and PyTorch's result then has the target's dtype."""
    for a in DTYPES:
        for b in DTYPES:
            x, t = torch.randn(6).to(a), torch.rand(6).to(b)
            with torch.autocast(torch.get_default_device().type, torch.bfloat16):
                ours, twin = bce(x, t), F.binary_cross_entropy_with_logits(x, t)
            assert_within_bound(ours, twin, F.binary_cross_entropy_with_logits(x.double(), t.double()))


def test_a_scalar_weight_may_live_on_another_device(backend: str) -> None:
    x = torch.empty(4, 3, device="meta")
    for name in ("weight", "pos_weight"):
        for function in (bce, F.binary_cross_entropy_with_logits):
            assert function(x, x, reduction="none", **{name: torch.tensor(2.0, device="cpu")}).shape == (4, 3)
    with pytest.raises(RuntimeError, match="weight is on cpu and input is on meta"):
        bce(x, x, torch.ones(3, device="cpu"))


def test_gradient_stops_at_weights_as_in_torch(backend: str) -> None:
    x, t = torch.randn(3), torch.rand(3)
    for name in ("weight", "pos_weight"):
        with pytest.raises(RuntimeError, match=f"not differentiable with respect to.*{name}"):
            bce(x.requires_grad_(), t, **{name: torch.ones(3, requires_grad=True)})
        with torch.no_grad():
            bce(x, t, **{name: torch.ones(3, requires_grad=True)})


def test_changing_the_input_before_backward_is_an_error(backend: str) -> None:
    x = torch.randn(3, requires_grad=True)
    y = x * 1
    loss = bce(y, torch.rand(3))
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_backward_twice(backend: str) -> None:
    x = torch.randn(3, requires_grad=True)
    loss = bce(x, torch.rand(3))
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, x)


BAD = [
    ((torch.ones(3), torch.ones(3, 1)), {}, ValueError, r"target of shape \(3, 1\).*\(3,\) of input"),
    (
        (torch.ones(3), torch.ones(3)),
        {"reduction": "avg"},
        ValueError,
        "reduction must be one of none, mean, sum.*'avg'",
    ),
    (
        (torch.ones(3).long(), torch.ones(3)),
        {},
        RuntimeError,
        "input must have a floating-point dtype.*int64",
    ),
    (
        (torch.ones(3), torch.ones(3).bool()),
        {},
        RuntimeError,
        "target must have a floating-point dtype.*bool",
    ),
    ((torch.ones(3, dtype=torch.cfloat), torch.ones(3)), {}, RuntimeError, "input must have.*complex64"),
    (
        (torch.ones(4, 3), torch.ones(4, 3)),
        {"weight": torch.ones(4)},
        RuntimeError,
        r"weight of shape \(4,\)",
    ),
    ((torch.ones(3), torch.ones(3)), {"weight": torch.ones(4, 3)}, RuntimeError, r"weight of shape \(4, 3\)"),
    (
        (torch.ones(4, 3), torch.ones(4, 3)),
        {"pos_weight": torch.ones(2)},
        RuntimeError,
        r"pos_weight of shape \(2,\)",
    ),
    (
        (torch.ones(3), torch.ones(3, device="meta")),
        {},
        RuntimeError,
        "target is on meta and input is on cpu",
    ),
    (([1.0], torch.ones(1)), {}, TypeError, "input must be a Tensor, not list"),
    ((torch.ones(1), torch.ones(1)), {"weight": 2.0}, TypeError, "weight must be a Tensor, not float"),
]


@pytest.mark.parametrize(("arguments", "keywords", "error", "message"), BAD)
def test_bad_input(backend: str, arguments, keywords, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        bce(*arguments, **keywords)


@given(
    shape=st.lists(st.integers(0, 9), max_size=4),
    scale=st.floats(0.01, 200.0),
    reduction=st.sampled_from(REDUCTIONS),
    dtype=st.sampled_from(DTYPES),
    weighted=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_scale(backend: str, shape, scale, reduction, dtype, weighted, seed) -> None:
    torch.manual_seed(seed)
    if reduction == "mean" and 0 in shape:
        return
    x, t = (scale * torch.randn(shape)).to(dtype), torch.rand(shape).to(dtype)
    last = shape[-1:] if weighted else []
    pos_weight = 2 * torch.rand(last)

    def run(function, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        weight = pos_weight.to(x.dtype) if weighted else None
        return function(x, t, reduction=reduction, pos_weight=weight)

    ours, torchs = (functools.partial(run, f) for f in (bce, F.binary_cross_entropy_with_logits))
    check_against_torch(ours, torchs, [x, t], value_shape(tuple(shape), reduction))
