"""fastgan.functional.segmented_activation and fastgan.nn.SegmentedActivation."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import pytest
import torch
from conformance import (
    DTYPES,
    as_double,
    assert_close_in_float64,
    assert_same_values,
    assert_within_bound,
    check_against_torch,
    derivatives,
    results_of_both,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastgan import functional, reference
from fastgan.nn import SegmentedActivation

pytestmark = pytest.mark.usefixtures("backend")

WIDTHS = [1, 5, 1, 3, 2, 4]
KINDS = ["tanh", "gumbel_softmax", "softmax", "softmax", "identity", "gumbel_softmax"]


# Segments and rows: one column, many columns, more than a lane, a warp or a block holds at once, more of them than a
# launch has room for, neighbours of one kind, one row, none.
TABLES: dict[str, tuple[list[tuple[int, str]], tuple[int, ...]]] = {
    "a table": (list(zip(WIDTHS, KINDS, strict=True)), (70,)),
    "one column each": ([(1, "softmax"), (1, "gumbel_softmax"), (1, "tanh"), (1, "identity")], (33,)),
    "1,000 levels": ([(1000, "gumbel_softmax"), (1, "tanh"), (64, "softmax"), (65, "softmax")], (5,)),
    "3,000 levels": ([(3000, "softmax"), (2, "gumbel_softmax")], (9,)),
    "many": ([(3, "gumbel_softmax"), (1, "tanh"), (2, "softmax"), (1, "identity")] * 70, (7,)),
    "reals": ([(1, "tanh")] * 9 + [(2, "identity")] * 300, (40,)),
    "one row": ([(5, "gumbel_softmax"), (3, "softmax")], ()),
    "many dimensions": ([(5, "gumbel_softmax"), (3, "softmax")], (2, 3, 11)),
    "no rows": ([(5, "gumbel_softmax"), (3, "tanh")], (0,)),
}


def case(name: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, list[int], list[str]]:
    """Input, noise, widths and kinds."""
    segments, rows = TABLES[name]
    widths, kinds = [width for width, _ in segments], [kind for _, kind in segments]
    gumbel = sum(width for width, kind in segments if kind == "gumbel_softmax")
    noise = -torch.empty(*rows, gumbel).exponential_().log()
    return (2 * torch.randn(*rows, sum(widths))).to(dtype), noise.to(dtype), widths, kinds


def ours(x: Tensor, noise: Tensor | None, widths: Sequence[int] = WIDTHS, kinds: Sequence[str] = KINDS) -> Tensor:
    return functional.segmented_activation(x, widths, kinds, noise=noise)


def as_ctgan_writes_it(x: Tensor, noise: Tensor | None, widths=WIDTHS, kinds=KINDS, tau: float = 0.2) -> Tensor:
    """One op a segment, as CTGAN's Generator does."""
    pieces, at, drawn = [], 0, 0
    for width, kind in zip(widths, kinds, strict=True):
        piece = x[..., at : at + width]
        at += width
        if kind == "gumbel_softmax":
            piece = torch.softmax((piece + noise[..., drawn : drawn + width]) / tau, -1)
            drawn += width
        pieces.append({"tanh": torch.tanh, "softmax": lambda p: p.softmax(-1)}.get(kind, lambda p: p)(piece))
    return torch.cat(pieces, -1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", TABLES)
def test_against_torch(name: str, dtype: torch.dtype) -> None:
    """In 16 bits the largest error of eight inputs together: of one it is luck. Of 3,000 levels it was over the bound
    with one seed in thirty, on a CPU too."""
    found = []
    for _ in range(8 if dtype.itemsize == 2 else 1):
        x, noise, widths, kinds = case(name, dtype)

        def run(function, x: Tensor, noise=noise, widths=widths, kinds=kinds) -> Tensor:
            return function(x, noise.to(x.dtype), widths, kinds)

        both = functools.partial(run, ours), functools.partial(run, as_ctgan_writes_it)
        found.append(results_of_both(*both, [x], x.shape))
    assert_within_bound(*([torch.stack(same) for same in zip(*one, strict=True)] for one in zip(*found, strict=True)))


@given(
    st.lists(st.tuples(st.integers(1, 80), st.sampled_from(reference.SEGMENT_KINDS)), min_size=1, max_size=12),
    st.integers(0, 40),
    st.integers(0, 2**31),
)
@settings(max_examples=15)
def test_any_table(segments: list[tuple[int, str]], rows: int, seed: int) -> None:
    widths, kinds = [width for width, _ in segments], [kind for _, kind in segments]
    torch.manual_seed(seed)
    x = 3 * torch.randn(rows, sum(widths))
    noise = torch.randn(rows, sum(width for width, kind in segments if kind == "gumbel_softmax"))

    def run(function, x: Tensor) -> Tensor:
        return function(x, noise.to(x.dtype), widths, kinds)

    check_against_torch(functools.partial(run, ours), functools.partial(run, as_ctgan_writes_it), [x], x.shape)


def test_definition_is_what_ctgan_writes() -> None:
    x, noise, widths, kinds = case("a table")
    exact = as_ctgan_writes_it(x.double(), noise.double())
    assert_within_bound(
        reference.segmented_activation(x, widths, kinds, 0.2, noise), as_ctgan_writes_it(x, noise), exact
    )


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
def test_16_bits_are_computed_in_float32(dtype: torch.dtype) -> None:
    """One rounding of the exact value, however large the draws: plain 16-bit logits / tau would be off by percents."""
    x, noise, widths, kinds = case("a table", dtype)
    exact = as_ctgan_writes_it(x.double(), noise.double())
    value = functional.segmented_activation(x, widths, kinds, noise=noise)
    assert value.dtype == dtype
    # Half a unit in the last place of numbers up to one, and what float32 adds.
    assert (value.double() - exact).abs().max() <= torch.finfo(dtype).eps / 4 + 1e-5


def test_noise_has_a_gradient_too() -> None:
    given = [case("a table", torch.float64)[i].requires_grad_() for i in (0, 1)]
    cotangents = [torch.randn(70, 16).double(), torch.randn(70, 16).double(), torch.randn(70, 9).double()]
    made = [derivatives(function, given, cotangents) for function in (ours, as_ctgan_writes_it)]
    assert_close_in_float64(*made)
    with torch.no_grad():
        ours(*given)


@pytest.mark.deep_on("simt")
@pytest.mark.parametrize("name", ["a table", "one column each", "many dimensions"])
def test_gradcheck(name: str) -> None:
    x, noise, widths, kinds = case(name, torch.float64)
    x, noise = x[:2].requires_grad_(), noise[:2]

    def run(x: Tensor) -> Tensor:
        return functional.segmented_activation(x, widths, kinds, tau=0.7, noise=noise)

    assert torch.autograd.gradcheck(run, [x], check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, [x], check_batched_grad=True)


def test_third_derivatives() -> None:
    x, noise = (t.double() for t in case("a table")[:2])
    weight = torch.linspace(-1, 2, x.numel(), dtype=torch.float64).view_as(x)
    results = []
    for function in (ours, as_ctgan_writes_it):
        at = x.clone().requires_grad_()
        total = (function(at, noise) * weight).sum()
        for _ in range(3):
            (gradient,) = torch.autograd.grad(total, at, create_graph=True)
            total = gradient.square().sum()
        results.append(gradient.detach())
    assert_close_in_float64(*results)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e4, -1e4])
def test_extreme_logits_end_where_torchs_do(value: float, dtype: torch.dtype) -> None:
    x, noise, widths, kinds = case("a table", dtype)
    noise = (16 * noise).round() / 16  # so that 1e4 and a draw have an exact sum: else its rounding is all the error
    x[3] = value  # a whole row: of -inf alone a softmax is NaN
    x[5, ::3] = value
    results = []
    for function, dtype_of in ((ours, dtype), (as_ctgan_writes_it, dtype), (as_ctgan_writes_it, torch.float64)):
        leaf = x.to(dtype_of, copy=True).requires_grad_()
        y = function(leaf, noise.to(dtype_of), widths, kinds)
        (gradient,) = torch.autograd.grad((y * torch.arange(16.0, dtype=dtype_of)).sum(), leaf)
        results.append([y.detach(), gradient])
    assert not math.isfinite(value) or results[0][0].isfinite().all()
    if value == -math.inf:
        assert not results[0][0][5, 9:12].isnan().any()
    assert_within_bound(*results)


@pytest.mark.parametrize("place", ["x", "noise", "gradient"])
def test_layouts(place: str) -> None:
    views = {
        "transposed": lambda t: t.t().contiguous().t(),
        "strided": lambda t: t.repeat_interleave(2, 0).repeat_interleave(3, 1)[::2, ::3],
        "expanded": lambda t: t[:1].expand(len(t), -1),
        "flipped": lambda t: t.flip(0),
    }
    x, noise, _, _ = case("a table")
    gradient = torch.randn(x.shape)
    for view in views.values():
        given = {"x": x, "noise": noise, "gradient": gradient}
        given[place] = view(given[place])
        results = []
        ways = (
            (ours, torch.float32),
            (as_ctgan_writes_it, torch.float32),
            (as_ctgan_writes_it, torch.float64),
        )
        for function, dtype in ways:
            leaf = given["x"].detach().to(dtype).requires_grad_()
            y = function(leaf, given["noise"].to(dtype))
            results.append([y.detach(), *torch.autograd.grad(y, leaf, given["gradient"].to(dtype))])
        assert_within_bound(*results)
        assert results[0][0].is_contiguous()


def test_same_bits_on_any_number_of_threads(one_thread: None) -> None:
    x, noise, widths, kinds = case("1,000 levels")
    x, noise = x.repeat(40, 1), noise.repeat(40, 1)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaf = x.clone().requires_grad_()
        y = ours(leaf, noise, widths, kinds)
        y.square().sum().backward()
        results.append((y.detach(), leaf.grad))
    for y, gradient in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(gradient, results[0][1])


def test_autocast_computes_in_float32() -> None:
    x, noise, widths, kinds = case("a table", torch.bfloat16)
    with torch.autocast(x.device.type, torch.bfloat16):
        under = ours(x, noise, widths, kinds)
        assert ours(x.float(), noise, widths, kinds).dtype == torch.float32
        assert ours(x.double(), noise, widths, kinds).dtype == torch.float64
    assert under.dtype == torch.float32
    assert_within_bound(under, as_ctgan_writes_it(x.float(), noise.float()), as_ctgan_writes_it(*as_double([x, noise])))


def test_draws_are_gumbels_and_finite() -> None:
    """Of 200,000 draws the mean is Euler's constant, the variance pi^2/6, each within five standard errors."""
    torch.manual_seed(11)
    draws = reference.gumbel_noise(torch.empty(1000, 3), 200)
    assert draws.shape == (1000, 200)
    assert draws.isfinite().all()
    variance = math.pi**2 / 6
    assert abs(draws.double().mean() - 0.5772156649) <= 5 * math.sqrt(variance / 200_000)
    # The fourth moment of a Gumbel is 5.4 squared variances.
    assert abs(draws.double().var() - variance) <= 5 * variance * math.sqrt(4.4 / 200_000)
    assert reference.gumbel_noise(torch.empty(2, 3, dtype=torch.bfloat16), 4).dtype == torch.float32


def test_module_ends_a_generator() -> None:
    generator = nn.Sequential(nn.Linear(4, 16), SegmentedActivation(WIDTHS, KINDS))
    torch.manual_seed(5)
    before = generator(torch.ones(3, 4))
    assert_same_values(before[:, 1:6].sum(-1).round(), torch.ones(3))
    before.square().sum().backward()
    assert generator[0].weight.grad.abs().sum() > 0


def test_seed_reproduces_and_nothing_is_drawn_in_vain() -> None:
    x = torch.randn(6, 16)
    torch.manual_seed(3)
    first = functional.segmented_activation(x, WIDTHS, KINDS)
    torch.manual_seed(3)
    assert_same_values(functional.segmented_activation(x, WIDTHS, KINDS), first)
    assert not torch.equal(functional.segmented_activation(x, WIDTHS, KINDS), first)
    state = torch.get_rng_state()
    functional.segmented_activation(x, [16], ["softmax"])
    functional.segmented_activation(x, WIDTHS, KINDS, noise=torch.zeros(6, 9))
    assert torch.equal(torch.get_rng_state(), state)


def test_module_samples_in_eval_too() -> None:
    module = SegmentedActivation(WIDTHS, KINDS, tau=0.5).eval()
    x = torch.randn(6, 16)
    assert not torch.equal(module(x), module(x))
    noise = torch.randn(6, 9)
    assert_same_values(module(x, noise), functional.segmented_activation(x, WIDTHS, KINDS, tau=0.5, noise=noise))
    assert "tau=0.5" in repr(module)
