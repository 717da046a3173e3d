"""Weights and values that are infinite, NaN, negative or huge: the results are infinite and NaN where torch's are."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conformance import ACTIVATIONS, derivatives
from torch import Tensor

from fastgan import reference
from fastgan.functional import binary_cross_entropy_with_logits, discriminator_loss, generator_loss, mlp

inf, nan = float("inf"), float("nan")
WEIGHTS = (None, 0.0, 1.0, -1.0, -2.5, inf, -inf, nan, 1e15)
# Beyond 200 the float32 loss of a right answer is exactly zero, so that an infinite weight makes a NaN of it.
LOGITS = (0.0, -0.0, 0.3, -0.7, 5.0, -5.0, 30.0, -30.0, 200.0, -200.0, 1e4, -1e4, inf, -inf, nan)
TARGETS = (0.0, 1.0, 0.25, 0.9)


def assert_like_torch(ours: list[Tensor], torchs: list[Tensor], exact: list[Tensor], size: Tensor) -> None:
    """The same infinities and NaN; elsewhere each element within twice torch's error against float64, plus 1e-6 of the
    size of what is added up for it."""
    for i, (a, b, e) in enumerate(zip(ours, torchs, exact, strict=True)):
        for kind in (torch.isnan, torch.isposinf, torch.isneginf):
            wrong = kind(a) != kind(b)
            assert not wrong.any(), f"result {i}, {kind.__name__}: {a[wrong]}, torch {b[wrong]} at {wrong.nonzero()}"
        finite = torch.isfinite(b) & torch.isfinite(e)
        error = (a.double() - e)[finite].abs()
        bound = 2 * (b.double() - e)[finite].abs() + 1e-6 * size.expand_as(e)[finite]
        assert (error <= bound).all(), f"result {i}: {error.max()}"


def derived(function: Callable[..., Tensor], given: list[Tensor]) -> list[Tensor]:
    """Value, gradients and second gradients against ones."""
    return derivatives(function, given, [x.new_ones(()) for x in given[:1]] + [torch.ones_like(x) for x in given])


def of_torch(torchs: Callable[..., Tensor], given: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """What torch makes of it, and what it makes of it in float64."""
    theirs = derived(torchs, given)
    return theirs, theirs if given[0].dtype == torch.float64 else derived(torchs, [x.double() for x in given])


def compare(
    ours: Callable[..., Tensor], torchs: Callable[..., Tensor], given: list[Tensor], size: float | Tensor = 1.0
) -> None:
    assert_like_torch(derived(ours, given), *of_torch(torchs, given), torch.as_tensor(size, dtype=torch.float64))


@pytest.mark.apart(lambda weight, pos_weight: weight is not None and math.isinf(weight) and pos_weight == 0)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pos_weight", WEIGHTS)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_every_weight_beside_every_logit(weight, pos_weight, dtype, backend) -> None:
    if weight is not None and math.isinf(weight) and pos_weight == 0:
        pytest.skip("the terms cancel to a zero or to their rounding, as the processor adds and multiplies")
    x, t = (torch.tensor(v, dtype=dtype) for v in zip(*itertools.product(LOGITS, TARGETS), strict=True))
    spread = [None if w is None else torch.full((1,), w, dtype=dtype) for w in (weight, pos_weight)]

    def of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def loss(x: Tensor, t: Tensor) -> Tensor:
            w, p = (None if v is None else v.to(x.dtype) for v in spread)
            return function(x, t, w, reduction="none", pos_weight=p)

        return loss

    size = x.double().nan_to_num(1.0, 1.0, 1.0).abs().clamp(min=1)
    for w in (weight, pos_weight):
        size = size * (max(1.0, abs(w)) if w is not None and math.isfinite(w) else 1.0)
    compare(of(binary_cross_entropy_with_logits), of(F.binary_cross_entropy_with_logits), [x, t], size)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("per", ["class", "element"])
def test_one_such_weight_among_others(per, reduction, backend) -> None:
    for weight in (inf, -inf, nan, -3.0):
        for place in ("weight", "pos_weight"):
            values = torch.ones(4) if per == "class" else torch.ones(300, 4)
            values.view(-1)[1] = weight

            def of(function: Callable[..., Tensor], values=values, place=place) -> Callable[..., Tensor]:
                return lambda x, t: function(x, t, reduction=reduction, **{place: values.to(x.dtype)})

            given = [torch.randn(300, 4), torch.rand(300, 4)]
            pair = (of(binary_cross_entropy_with_logits), of(F.binary_cross_entropy_with_logits))
            compare(*pair, given, size=1200.0 if reduction == "sum" else 10.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_gan_losses_of_logits_that_are_not_finite(reduction, dtype, backend) -> None:
    def torchs(x: Tensor, t: float, sign: float = 1.0) -> Tensor:
        return sign * F.binary_cross_entropy_with_logits(x, torch.full_like(x, t), reduction=reduction)

    batches = [[v] for v in LOGITS] if reduction != "none" else [LOGITS]
    for batch in batches:
        x = torch.tensor(batch, dtype=dtype)
        compare(lambda x: generator_loss(x, reduction=reduction), lambda x: torchs(x, 1.0), [x], 1e4)
        compare(
            lambda x: generator_loss(x, kind="minimax", reduction=reduction), lambda x: torchs(x, 0.0, -1.0), [x], 1e4
        )
        for half, t in enumerate((0.9, 0.0)):

            def ours(x: Tensor, half=half) -> Tensor:
                pair = (x, torch.zeros_like(x)) if half == 0 else (torch.zeros_like(x), x)
                loss = discriminator_loss(*pair, real_target=0.9, reduction=reduction)
                return loss[half] if reduction == "none" else loss

            def whole(x: Tensor, half=half, t=t) -> Tensor:
                other = torchs(torch.zeros_like(x), (0.0, 0.9)[half])
                return torchs(x, t) if reduction == "none" else torchs(x, t) + other

            compare(ours, whole, [x], 1e4)


# By kind: D's loss of logits of both, and G's, as people write them.
KINDS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "relativistic": (
        lambda x, y: F.binary_cross_entropy_with_logits(x - y, torch.ones_like(x), reduction="none"),
        lambda x, y: F.binary_cross_entropy_with_logits(x - y, torch.ones_like(x), reduction="none"),
    ),
    "hinge": (lambda x, y: F.relu(1 - x) + F.relu(1 + y), lambda x: -x),
    "wasserstein": (lambda x, y: y - x, lambda x: -x),
    "least_squares": (lambda x, y: (x - 1) ** 2 / 2 + y**2 / 2, lambda x: (x - 1) ** 2 / 2),
}


@functools.lru_cache(maxsize=2048)  # of the pairs of some tests: those of the backends come one after the other
def of_torch_each(
    kind: str, half: int, factor: str, values: tuple[str, ...], dtype: torch.dtype, device: str
) -> tuple[list[Tensor], list[Tensor]]:
    """The same of D's loss (half 0) or G's times a factor, at a pair or at a logit; numbers as text, NaN among them."""
    return of_torch(
        lambda *x: float(factor) * KINDS[kind][half](*x).sum(),
        [torch.tensor([float(value)], dtype=dtype, device=device) for value in values],
    )


# Of a loss that pairs its logits, all pairs. The others are sums of two terms, each of a logit of its own: a term of
# every value meets one that is finite, infinite and NaN.
ALL_PAIRS = tuple(itertools.product(LOGITS, LOGITS))
PAIRS = tuple(
    pair for pair in ALL_PAIRS if any(value == 0.3 or math.isinf(value) or math.isnan(value) for value in pair)
)


@pytest.mark.apart(lambda kind, factor: kind == "relativistic" and factor == inf)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [1.0, inf, nan])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_every_kind_that_are_not_finite(kind, factor, dtype, backend) -> None:
    """A pair of logits each, the gradient of the sum of their losses being finite or not; a hinge that has nothing to
    give gives nothing of what is infinite."""
    if kind == "relativistic" and factor == inf:
        pytest.skip("of a large logit torch's sigma(x) - 1 is zero, whose product with infinity is NaN; ours is not")
    paired = kind == "relativistic"

    def d_ours(x: Tensor, y: Tensor) -> Tensor:
        return factor * discriminator_loss(x, y, kind=kind, reduction="sum")

    def g_ours(*x: Tensor) -> Tensor:
        return factor * generator_loss(*x, kind=kind, reduction="sum")

    device = torch.get_default_device().type
    for half, ours, batches in (
        (0, d_ours, ALL_PAIRS if paired else PAIRS),
        (1, g_ours, ALL_PAIRS if paired else [(x,) for x in LOGITS]),
    ):
        for values in batches:
            given = [torch.tensor([v], dtype=dtype) for v in values]
            size = max(1.0, *(min(abs(v), 1e4) for v in values if not math.isnan(v)), 0.0) ** 2
            torchs = of_torch_each(kind, half, str(factor), tuple(map(str, values)), dtype, device)
            assert_like_torch(derived(ours, given), *torchs, torch.as_tensor(size, dtype=torch.float64))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("value", [inf, -inf, nan, 1e38, -1e38])
@pytest.mark.parametrize("where", ["input", "weight", "bias"])
def test_layers_with_values_that_are_not_finite(where, value, activation, backend) -> None:
    generator = torch.Generator(torch.get_default_device()).manual_seed(2)
    shapes = {"input": (9, 5), "weight": (7, 5), "second": (3, 7), "bias": (7,)}
    given = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    given["input"][3] = 0.0  # zero times infinity is NaN
    given[where].view(-1)[6 % given[where].numel()] = value

    def of(layers: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, w, v, b: layers(x, [w, v], [b, None], [activation, "identity"], [0.2, 0.0])

    size = torch.tensor(1e30, dtype=torch.float64)
    with torch.no_grad():
        ours, torchs = (of(f)(*given.values()) for f in (mlp, reference.mlp))
        assert_like_torch([ours], [torchs], [torchs], size)
    if activation == "elu" and not all(x.isfinite().all() for x in given.values()):
        return  # the derivative of torch's at NaN is NaN in the vectors of its loop, and 1 in what remains of them
    cotangents = [torch.ones((), dtype=torch.float64), *(torch.ones(s, dtype=torch.float64) for s in shapes.values())]
    made = [derivatives(of(f), list(given.values()), cotangents)[:5] for f in (mlp, reference.mlp)]
    assert_like_torch(made[0], made[1], made[1], size)
