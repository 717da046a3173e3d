"""The kinds of discriminator_loss and generator_loss, beside bce's: against their formulas, on every backend.

What both have of the cross-entropies has test_logits_loss.py.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conformance import (
    DTYPES,
    REDUCTIONS,
    assert_close_in_float64,
    assert_within_bound,
    check_against_torch,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import profile

from fastgan import backend as fastgan_backend
from fastgan import checks, reference
from fastgan.functional import LOSS_TERM, discriminator_loss, generator_loss

D_KINDS = ("relativistic", "hinge", "wasserstein", "least_squares")
G_KINDS = D_KINDS
ALL_D_KINDS, ALL_G_KINDS = ("bce", *D_KINDS), ("non_saturating", "minimax", *G_KINDS)

REDUCE: dict[str, Callable[[Tensor], Tensor]] = {"none": lambda x: x, "mean": torch.mean, "sum": torch.sum}


def bce(x: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(x, torch.full_like(x, target), reduction="none")


def halves(kind: str, real: Tensor, fake: Tensor, a: float = 1.0, b: float = 0.0) -> tuple[Tensor, ...]:
    """What D's loss is the sum of, unreduced, as people write it: two halves, or one of pairs."""
    match kind:
        case "bce":
            return bce(real, a), bce(fake, b)
        case "relativistic":
            return (bce(real - fake, 1.0),)
        case "hinge":
            return F.relu(1 - real), F.relu(1 + fake)
        case "wasserstein":
            return -real, 1 * fake
        case _:
            return (real - a) ** 2 / 2, (fake - b) ** 2 / 2


def torch_discriminator_loss(
    real: Tensor, fake: Tensor, kind: str, reduction: str, a: float = 1.0, b: float = 0.0
) -> Tensor:
    reduced = [REDUCE[reduction](half) for half in halves(kind, real, fake, a, b)]
    return reduced[0] if len(reduced) == 1 else reduced[0] + reduced[1]


def torch_generator_loss(fake: Tensor, *real: Tensor, kind: str, reduction: str, target: float = 1.0) -> Tensor:
    match kind:
        case "non_saturating":
            loss = bce(fake, target)
        case "minimax":
            loss = -bce(fake, 1 - target)
        case "relativistic":
            loss = bce(fake - real[0], 1.0)
        case "hinge" | "wasserstein":
            loss = -fake
        case _:
            loss = (fake - target) ** 2 / 2
    return REDUCE[reduction](loss)


def arguments(kind: str, fake: Tensor, real: Tensor) -> list[Tensor]:
    """Those of generator_loss."""
    return [fake, real] if kind == "relativistic" else [fake]


def test_the_compiled_table_is_the_reference(compiled: None) -> None:
    assert fastgan_backend.module.gan_losses() == reference.GAN_LOSSES
    assert list(fastgan_backend.module.gan_losses()) == list(reference.GAN_LOSSES)
    assert fastgan_backend.module.loss_terms() == list(reference.LOSS_TERMS) == list(LOSS_TERM)


def test_the_kinds_are_those_of_the_table() -> None:
    assert checks.GENERATOR_LOSSES == ALL_G_KINDS
    assert checks.DISCRIMINATOR_LOSSES == ALL_D_KINDS
    for loss in reference.GAN_LOSSES.values():
        assert {loss.real.term, loss.fake.term, loss.generator.term} <= set(reference.LOSS_TERMS)
        assert loss.real.term == loss.fake.term  # what one call of the compiled op takes
        assert (loss.real.sign, loss.fake.sign) == (1.0, 1.0)
        assert not loss.is_paired or loss.real.term == loss.generator.term == "cross_entropy"
        # Of one discriminator's loss, D's parts are one.
        assert loss[:5] == reference.DISCRIMINATOR_LOSSES[loss.discriminator][:5]


SIZES = [((7, 1), (7, 1)), ((64, 1), (33, 1)), ((5,), (257, 3)), ((), (1,)), ((20_000,), (30_001,))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", D_KINDS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_discriminator_loss(backend: str, sizes, kind: str, reduction: str, dtype: torch.dtype) -> None:
    sizes = (sizes[1], sizes[1]) if kind == "relativistic" else sizes
    inputs = [(3 * torch.randn(size)).to(dtype) for size in sizes]
    ours = functools.partial(discriminator_loss, kind=kind, reduction=reduction)
    torchs = functools.partial(torch_discriminator_loss, kind=kind, reduction=reduction)
    check_against_torch(ours, torchs, inputs, ())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", D_KINDS)
def test_unreduced_halves(backend: str, kind: str, dtype: torch.dtype) -> None:
    inputs = [(2 * torch.randn(33, 7)).to(dtype) for _ in range(2)]
    made = discriminator_loss(*inputs, kind=kind, reduction="none")
    assert isinstance(made, Tensor if kind == "relativistic" else tuple)
    for half in range(1 if kind == "relativistic" else 2):

        def ours(x: Tensor, y: Tensor, half: int = half) -> Tensor:
            losses = discriminator_loss(x, y, kind=kind, reduction="none")
            return losses if isinstance(losses, Tensor) else losses[half]

        def torchs(x: Tensor, y: Tensor, half: int = half) -> Tensor:
            return halves(kind, x, y)[half]

        check_against_torch(ours, torchs, inputs, (33, 7))


@pytest.mark.apart(lambda size, reduction: reduction == "mean" and 0 in size)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", G_KINDS)
@pytest.mark.parametrize("size", [(), (33, 1), (4, 0), (70_001,)], ids=str)
def test_generator_loss(backend: str, size, kind: str, reduction: str, dtype: torch.dtype) -> None:
    inputs = arguments(kind, *[(3 * torch.randn(size)).to(dtype) for _ in range(2)])
    if reduction == "mean" and 0 in size:
        assert generator_loss(*inputs, kind=kind).isnan()
        return
    ours = functools.partial(generator_loss, kind=kind, reduction=reduction)
    torchs = functools.partial(torch_generator_loss, kind=kind, reduction=reduction)
    check_against_torch(ours, torchs, inputs, size if reduction == "none" else ())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("targets", [(1.0, 0.0), (0.9, -0.5), (1, -1), (17.5, 3.0)], ids=str)
def test_targets_of_least_squares(backend: str, targets, dtype: torch.dtype) -> None:
    a, b = targets
    inputs = [(3 * torch.randn(n)).to(dtype) for n in (9, 6)]
    ours = functools.partial(discriminator_loss, kind="least_squares", real_target=a, fake_target=b)
    torchs = functools.partial(torch_discriminator_loss, kind="least_squares", reduction="mean", a=a, b=b)
    check_against_torch(ours, torchs, inputs, ())
    ours = functools.partial(generator_loss, kind="least_squares", target=b)
    torchs = functools.partial(torch_generator_loss, kind="least_squares", reduction="mean", target=b)
    check_against_torch(ours, torchs, inputs[:1], ())


def test_the_formulas_of_the_papers(backend: str) -> None:
    real, fake = torch.randn(50, dtype=torch.double), torch.randn(50, dtype=torch.double)
    sigma = torch.sigmoid
    expected = {
        "relativistic": (-sigma(real - fake).log().mean(), -sigma(fake - real).log().mean()),
        "hinge": ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean(), -fake.mean()),
        "wasserstein": (fake.mean() - real.mean(), -fake.mean()),
        "least_squares": (((real - 1).square().mean() + fake.square().mean()) / 2, (fake - 1).square().mean() / 2),
    }
    for kind, (d_loss, g_loss) in expected.items():
        assert_close_in_float64(discriminator_loss(real, fake, kind=kind), d_loss)
        assert_close_in_float64(generator_loss(*arguments(kind, fake, real), kind=kind), g_loss)


@pytest.mark.parametrize("kind", D_KINDS)
@pytest.mark.parametrize("empty", [0, 1])
def test_an_empty_half(backend: str, empty: int, kind: str) -> None:
    x = torch.randn(4, requires_grad=True)
    pair = [x, torch.empty(0)] if empty == 1 else [torch.empty(0), x]
    if kind == "relativistic":
        assert discriminator_loss(pair[empty], pair[empty], kind=kind).isnan()
        assert discriminator_loss(pair[empty], pair[empty], kind=kind, reduction="sum") == 0
        return
    assert discriminator_loss(*pair, kind=kind).isnan()
    loss = discriminator_loss(*pair, kind=kind, reduction="sum")
    ours = torch.autograd.grad(loss, x)
    results = []
    for leaf in (x, x.detach().double().requires_grad_()):
        whole = torch_discriminator_loss(*((y if y.numel() == 0 else leaf) for y in pair), kind=kind, reduction="sum")
        results.append((whole.detach(), *torch.autograd.grad(whole, leaf)))
    assert_within_bound((loss.detach(), *ours), *results)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("logit", [1e4, -1e4, 250.0, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("kind", D_KINDS)
def test_extreme_logits_end_where_torchs_do(backend: str, kind: str, logit: float, dtype: torch.dtype) -> None:
    logits, results = torch.full((3,), logit, dtype=dtype), []
    torchs = functools.partial(torch_discriminator_loss, kind=kind, reduction="mean")
    for function, value in (
        (functools.partial(discriminator_loss, kind=kind), logits),
        (torchs, logits),
        (torchs, logits.double()),
    ):
        x, y = value.clone().requires_grad_(), -value.clone().requires_grad_()
        loss = function(x, y)
        results.append((loss.detach(), *torch.autograd.grad(loss, (x, y))))
    # 1e8 / 2, the loss of least squares, is more than float16 has.
    overflows = dtype == torch.float16 and kind == "least_squares" and abs(logit) == 1e4
    assert all(not math.isfinite(logit) or value.isfinite().all() for value in results[0][overflows:])
    assert_within_bound(*results)


def test_least_squares_in_float16_overflow_only_where_the_loss_does(compiled: None) -> None:
    # 300 squared is more than float16 has, but its half is not.
    x = torch.full((3,), 301.0, dtype=torch.float16)
    assert torch.equal(generator_loss(x, kind="least_squares"), torch.tensor(45000.0, dtype=torch.float16))


@pytest.mark.parametrize("kind", D_KINDS)
def test_non_contiguous(backend: str, kind: str) -> None:
    def both(function: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda base: function(base[:7, 3:9], base.t()[7:14, ::5][:, :6])

    ours = functools.partial(discriminator_loss, kind=kind)
    torchs = functools.partial(torch_discriminator_loss, kind=kind, reduction="mean")
    check_against_torch(both(ours), both(torchs), [torch.randn(64, 30)], ())


@pytest.mark.parametrize("kind", ALL_D_KINDS)
@pytest.mark.parametrize("wanted", [0, 1])
def test_gradients_of_one_half_alone(backend: str, wanted: int, kind: str) -> None:
    pair = [torch.randn(8, requires_grad=i == wanted) for i in range(2)]
    discriminator_loss(*pair, kind=kind).backward()
    assert pair[1 - wanted].grad is None

    def alone(function: Callable[..., Tensor], pair: list[Tensor]) -> Callable[[Tensor], Tensor]:
        other = pair[1 - wanted].detach()
        return lambda x: function(*((x, other.to(x.dtype)) if wanted == 0 else (other.to(x.dtype), x)))

    ours = functools.partial(discriminator_loss, kind=kind)
    torchs = functools.partial(torch_discriminator_loss, kind=kind, reduction="mean")
    check_against_torch(alone(ours, pair), alone(torchs, pair), [pair[wanted].detach()], ())


@pytest.mark.parametrize("kind", ALL_D_KINDS)
def test_second_derivatives_of_one_half_of_two(backend: str, kind: str) -> None:
    """Asked of the gradient by one batch, where the loss is of two that both require it."""
    for asked in range(2):
        found = []
        for function in (
            functools.partial(discriminator_loss, kind=kind),
            functools.partial(torch_discriminator_loss, kind=kind, reduction="mean"),
        ):
            torch.manual_seed(2)
            pair = [torch.randn(8, dtype=torch.float64, requires_grad=True) for _ in range(2)]
            scale = torch.ones((), dtype=torch.float64, requires_grad=True)
            (gradient,) = torch.autograd.grad(scale * function(*pair), pair[asked], create_graph=True)
            second = torch.autograd.grad(gradient.square().sum(), [scale, *pair], allow_unused=True)
            found.append([torch.zeros(()).double() if g is None else g for g in second])
            found[-1] = [torch.zeros(8).double() if g.dim() == 0 and i else g for i, g in enumerate(found[-1])]
        assert_close_in_float64(*found)


@pytest.mark.parametrize("kind", D_KINDS)
def test_the_same_tensor_twice(backend: str, kind: str) -> None:
    ours = functools.partial(discriminator_loss, kind=kind)
    torchs = functools.partial(torch_discriminator_loss, kind=kind, reduction="mean")
    check_against_torch(lambda x: ours(x, x), lambda x: torchs(x, x), [torch.randn(8)], ())


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ALL_G_KINDS)
def test_gradcheck_and_third_derivative(backend: str, kind: str, reduction: str) -> None:
    x, y = (torch.randn(5, dtype=torch.double, requires_grad=True) for _ in range(2))
    discriminator = functools.partial(
        discriminator_loss, kind=reference.GAN_LOSSES[kind].discriminator, reduction=reduction
    )
    generator = functools.partial(generator_loss, kind=kind, reduction=reduction)
    inputs = tuple(arguments(kind, x, y))
    for function, leaves in ((discriminator, (x, y)), (generator, inputs)):
        assert torch.autograd.gradcheck(function, leaves)
        assert torch.autograd.gradgradcheck(function, leaves)
    derivatives = []
    for function in (generator, functools.partial(torch_generator_loss, kind=kind, reduction=reduction)):
        value = function(*inputs)
        for _ in range(3):
            if value.requires_grad:
                (value,) = torch.autograd.grad(value.sum(), x, create_graph=True, allow_unused=True)
            else:
                value = None
            value = torch.zeros_like(x) if value is None else value
        derivatives.append(value)
    assert_close_in_float64(*derivatives)


@pytest.mark.parametrize("kind", ALL_D_KINDS)
def test_second_derivatives_are_one_pass_of_a_kernel(compiled: None, kind: str) -> None:
    pair = [torch.randn(8, requires_grad=True) for _ in range(2)]
    scale = torch.ones((), requires_grad=True)
    gradients = torch.autograd.grad(scale * discriminator_loss(*pair, kind=kind), pair, create_graph=True)
    with profile() as record:
        torch.autograd.grad(gradients, [scale, *pair], [torch.ones(8)] * 2, allow_unused=True)
    names = [event.name for event in record.events()]
    assert names.count("fastgan::logits_loss_double_backward") == 1
    assert not [name for name in names if name in ("aten::sigmoid", "aten::sub", "aten::div", "aten::where")]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ALL_D_KINDS)
def test_gradients_batched_by_vmap(backend: str, kind: str, reduction: str) -> None:
    """First and second gradients against several cotangents at once are those against each."""
    pair = [torch.randn(6, dtype=torch.double, requires_grad=True) for _ in range(2)]
    values = discriminator_loss(*pair, kind=kind, reduction=reduction)
    value = values if isinstance(values, Tensor) else values[0] + values[1]
    many = torch.randn(4, *value.shape, dtype=torch.double)
    batched = torch.autograd.grad(value, pair, many, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(value, pair, one, retain_graph=True) for one in many]
    assert_close_in_float64(batched, [torch.stack(g) for g in zip(*each, strict=True)])

    at = torch.randn(value.shape, dtype=torch.double, requires_grad=True)
    first = torch.autograd.grad(value, pair, at, create_graph=True)
    many = torch.randn(4, 6, dtype=torch.double)
    batched = torch.autograd.grad(first[0], at, many, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(first[0], at, one, retain_graph=True) for one in many]
    assert_close_in_float64(batched, [torch.stack(g) for g in zip(*each, strict=True)])


@pytest.mark.parametrize("kind", D_KINDS)
def test_same_bits_on_any_number_of_threads(compiled: None, kind: str) -> None:
    x, y = torch.randn(100_003), torch.randn(100_003 if kind == "relativistic" else 50_001)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            leaves = [t.clone().requires_grad_() for t in (x, y)]
            scale = torch.ones((), requires_grad=True)
            loss = discriminator_loss(*leaves, kind=kind) * scale
            first = torch.autograd.grad(loss, leaves, create_graph=True)
            second = torch.autograd.grad(first, [scale, *leaves], [x.cos(), y.cos()], allow_unused=True)
            results.append([loss.detach(), *(g.detach() for g in first), *(g for g in second if g is not None)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_autocast_computes_in_float32(backend: str) -> None:
    x, y = torch.randn(8, dtype=torch.bfloat16), torch.randn(8)
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        assert discriminator_loss(x, y, kind="relativistic").dtype == torch.float32
        assert generator_loss(y, x, kind="relativistic").dtype == torch.float32


@pytest.mark.deep_on("reference")
@pytest.mark.parametrize("kind", ALL_G_KINDS)
def test_inside_a_compiled_graph(backend: str, kind: str) -> None:
    d_kind = reference.GAN_LOSSES[kind].discriminator

    def both(x: Tensor, y: Tensor) -> Tensor:
        return discriminator_loss(x, y, kind=d_kind) + generator_loss(*arguments(kind, y, x), kind=kind)

    torch._dynamo.reset()
    results = []
    for function in (torch.compile(both, backend="aot_eager", fullgraph=True), both):
        torch.manual_seed(1)
        pair = [torch.randn(6, 1, dtype=torch.double, requires_grad=True) for _ in range(2)]
        value = function(*pair)
        results.append([value.detach(), *torch.autograd.grad(value, pair)])
    assert_close_in_float64(*results)


def test_targets_that_are_the_defaults_are_taken(backend: str) -> None:
    ones = torch.ones(2)
    for kind, one, zero in itertools.product(("relativistic", "hinge", "wasserstein"), (1, 1.0), (0, 0.0)):
        loss = discriminator_loss(ones, ones, kind=kind, real_target=one, fake_target=zero)
        assert torch.equal(loss, discriminator_loss(ones, ones, kind=kind))
        inputs = arguments(kind, ones, ones)
        assert torch.equal(generator_loss(*inputs, kind=kind, target=one), generator_loss(*inputs, kind=kind))


@given(
    sizes=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    scale=st.floats(0.01, 200.0),
    kind=st.sampled_from(D_KINDS),
    reduction=st.sampled_from(["mean", "sum"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_any_sizes(backend: str, sizes, scale, kind, reduction, dtype, seed) -> None:
    torch.manual_seed(seed)
    sizes = (sizes[0], sizes[0]) if kind == "relativistic" else sizes
    inputs = [(scale * torch.randn(n)).to(dtype) for n in sizes]
    ours = functools.partial(discriminator_loss, kind=kind, reduction=reduction)
    torchs = functools.partial(torch_discriminator_loss, kind=kind, reduction=reduction)
    check_against_torch(ours, torchs, inputs, ())
