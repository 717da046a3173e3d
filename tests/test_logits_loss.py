"""discriminator_loss and generator_loss against their definitions, on every backend."""

from __future__ import annotations

import functools
import math
from pathlib import Path

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
from conftest import DENORMALS
from hypothesis import given
from hypothesis import strategies as st

from fastgan.functional import discriminator_loss, generator_loss


def torch_half(logits: torch.Tensor, target: float, reduction: str) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target), reduction=reduction)


def torch_discriminator_loss(real, fake, a: float, b: float, reduction: str) -> torch.Tensor:
    return torch_half(real, a, reduction) + torch_half(fake, b, reduction)


def torch_generator_loss(fake, kind: str, target: float, reduction: str) -> torch.Tensor:
    if kind == "minimax":
        return -torch_half(fake, 1 - target, reduction)
    return torch_half(fake, target, reduction)


SIZES = [((7, 1), (7, 1)), ((64, 1), (33, 1)), ((5,), (257, 3)), ((), (1,)), ((20_000,), (30_001,))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("targets", [(1.0, 0.0), (0.9, 0.1), (0.0, 1.0)], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_discriminator_loss(backend: str, sizes, targets, reduction: str, dtype: torch.dtype) -> None:
    a, b = targets
    inputs = [(3 * torch.randn(size)).to(dtype) for size in sizes]
    ours = functools.partial(discriminator_loss, real_target=a, fake_target=b, reduction=reduction)
    torchs = functools.partial(torch_discriminator_loss, a=a, b=b, reduction=reduction)
    check_against_torch(ours, torchs, inputs, ())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("half", [0, 1])
def test_unreduced_halves(backend: str, half: int, dtype: torch.dtype) -> None:
    other = torch.randn(3).to(dtype)

    def ours(x: torch.Tensor) -> torch.Tensor:
        pair = (x, other) if half == 0 else (other, x)
        losses = discriminator_loss(*pair, real_target=0.9, fake_target=0.2, reduction="none")
        assert losses[1 - half].shape == other.shape
        return losses[half]

    torchs = functools.partial(torch_half, target=(0.9, 0.2)[half], reduction="none")
    check_against_torch(ours, torchs, [torch.randn(33, 7).to(dtype)], (33, 7))


@pytest.mark.apart(lambda size, reduction: reduction == "mean" and 0 in size)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ["non_saturating", "minimax"])
@pytest.mark.parametrize("target", [1.0, 0.8])
@pytest.mark.parametrize("size", [(), (33, 1), (4, 0), (70_001,)], ids=str)
def test_generator_loss(backend: str, size, target: float, kind: str, reduction: str, dtype: torch.dtype) -> None:
    if reduction == "mean" and 0 in size:
        assert generator_loss(torch.empty(size), kind=kind).isnan()
        return
    ours = functools.partial(generator_loss, kind=kind, target=target, reduction=reduction)
    torchs = functools.partial(torch_generator_loss, kind=kind, target=target, reduction=reduction)
    check_against_torch(ours, torchs, [(3 * torch.randn(size)).to(dtype)], size if reduction == "none" else ())


def test_the_formulas_of_the_paper(backend: str) -> None:
    real, fake = torch.randn(50, dtype=torch.double), torch.randn(50, dtype=torch.double)
    d_real, d_fake = torch.sigmoid(real), torch.sigmoid(fake)
    expected = -d_real.log().mean() - (1 - d_fake).log().mean()
    assert_close_in_float64(discriminator_loss(real, fake), expected)
    assert_close_in_float64(generator_loss(fake), -d_fake.log().mean())
    assert_close_in_float64(generator_loss(fake, kind="minimax"), (1 - d_fake).log().mean())


@pytest.mark.parametrize("empty", [0, 1])
def test_an_empty_half(backend: str, empty: int) -> None:
    x = torch.randn(4, requires_grad=True)
    pair = [x, torch.empty(0)]
    pair = pair if empty == 1 else pair[::-1]
    assert discriminator_loss(*pair).isnan()
    loss = discriminator_loss(*pair, reduction="sum")
    target = 1.0 if empty == 1 else 0.0
    assert_within_bound(loss, torch_half(x, target, "sum"), torch_half(x.double(), target, "sum"))
    loss.backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("logit", [1e4, -1e4, 300.0, math.inf, -math.inf, math.nan])
def test_extreme_logits_end_where_torchs_do(backend: str, logit: float, dtype: torch.dtype) -> None:
    results = []
    given, torchs = torch.full((3,), logit, dtype=dtype), functools.partial(torch_discriminator_loss, a=1.0, b=0.0)
    torchs = functools.partial(torchs, reduction="mean")
    for function, value in ((discriminator_loss, given), (torchs, given), (torchs, given.double())):
        x, y = (value.clone().requires_grad_() for _ in range(2))
        loss = function(x, y)
        results.append((loss.detach(), *torch.autograd.grad(loss, (x, y))))
    assert all(not math.isfinite(logit) or value.isfinite().all() for value in results[0])
    assert_within_bound(*results)


def test_non_contiguous(backend: str) -> None:
    def ours(base: torch.Tensor) -> torch.Tensor:
        return discriminator_loss(base[:, 3], base.t()[7:9, ::5])

    def torchs(base: torch.Tensor) -> torch.Tensor:
        return torch_discriminator_loss(base[:, 3], base.t()[7:9, ::5], 1.0, 0.0, "mean")

    check_against_torch(ours, torchs, [torch.randn(64, 30)], ())


@pytest.mark.parametrize("wanted", [0, 1])
def test_gradient_of_one_half_alone(backend: str, wanted: int) -> None:
    pair = [torch.randn(8, requires_grad=i == wanted) for i in range(2)]
    discriminator_loss(*pair).backward()
    assert pair[1 - wanted].grad is None
    (expected,) = torch.autograd.grad(torch_discriminator_loss(*pair, 1.0, 0.0, "mean"), pair[wanted])
    wide = as_double(pair)
    (exact,) = torch.autograd.grad(torch_discriminator_loss(*wide, 1.0, 0.0, "mean"), wide[wanted])
    assert_within_bound(pair[wanted].grad, expected, exact)


def test_the_same_tensor_twice(backend: str) -> None:
    def torchs(x: torch.Tensor) -> torch.Tensor:
        return torch_discriminator_loss(x, x, 1.0, 0.0, "mean")

    check_against_torch(lambda x: discriminator_loss(x, x), torchs, [torch.randn(8)], ())


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck_and_third_derivative(backend: str, reduction: str) -> None:
    x = torch.randn(5, dtype=torch.double, requires_grad=True)
    y = torch.randn(3, dtype=torch.double, requires_grad=True)
    smooth = functools.partial(discriminator_loss, real_target=0.9, fake_target=0.2, reduction=reduction)
    generator = functools.partial(generator_loss, kind="minimax", target=0.7, reduction=reduction)
    for function, inputs in ((smooth, (x, y)), (generator, (x,))):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)
    derivatives = []
    for function in (
        generator,
        functools.partial(torch_generator_loss, kind="minimax", target=0.7, reduction=reduction),
    ):
        value = function(x)
        for _ in range(3):
            (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        derivatives.append(value)
    assert_close_in_float64(*derivatives)


def test_same_bits_on_any_number_of_threads(compiled: None) -> None:
    x, y = torch.randn(100_003), torch.randn(50_001)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            leaves = [t.clone().requires_grad_() for t in (x, y)]
            loss = discriminator_loss(*leaves)
            results.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_loss_scaling_does_not_underflow_in_float16(backend: str) -> None:
    # A gradient of 1 / n is below float16's smallest number; scaled as a GradScaler does, it is not.
    n = 1 << 16
    x = torch.zeros(n, dtype=torch.float16, requires_grad=True)
    (generator_loss(x) * 65536.0 / 4).backward()
    assert torch.equal(x.grad, torch.full((n,), -0.5 * 65536 / 4 / n, dtype=torch.float16))


def test_autocast_computes_in_float32(backend: str) -> None:
    x, y = torch.randn(8, dtype=torch.bfloat16), torch.randn(6)
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        assert discriminator_loss(x, y).dtype == torch.float32
        assert generator_loss(x).dtype == torch.float32


@pytest.mark.deep
def test_over_two_to_the_31_elements(compiled: None) -> None:
    if _free_memory() < 10 << 30:
        pytest.skip("needs 10 GiB of free memory")
    n = (1 << 31) + 4097
    logits = torch.zeros(n, dtype=torch.bfloat16)
    logits[-1] = 1e4
    total = generator_loss(logits, kind="minimax", reduction="sum")
    assert total.item() == pytest.approx(-((n - 1) * math.log(2) + 1e4), rel=2**-8)
    losses = generator_loss(logits, kind="minimax", reduction="none")
    assert losses[-1].item() == pytest.approx(-1e4, rel=2**-8)
    assert losses[-2].item() == pytest.approx(-math.log(2), rel=2**-8)


def _free_memory() -> int:
    """Bytes that can be had without swapping; 0 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


BAD = [
    (discriminator_loss, (torch.ones(2), torch.ones(2)), {"real_target": 1.5}, ValueError, r"real_target.*\[0, 1\]"),
    (discriminator_loss, (torch.ones(2), torch.ones(2)), {"fake_target": -0.1}, ValueError, "fake_target.*-0.1"),
    (discriminator_loss, (torch.ones(2), torch.ones(2)), {"fake_target": math.nan}, ValueError, "fake_target.*nan"),
    (discriminator_loss, (torch.ones(2), torch.ones(2)), {"fake_target": "0"}, TypeError, "fake_target.*str '0'"),
    (discriminator_loss, (torch.ones(2), torch.ones(2)), {"reduction": "max"}, ValueError, "reduction.*'max'"),
    (discriminator_loss, (torch.ones(2).int(), torch.ones(2)), {}, RuntimeError, "real_logits must.*int32"),
    (discriminator_loss, (torch.ones(2), torch.ones(2).int()), {}, RuntimeError, "fake_logits must.*int32"),
    (discriminator_loss, (torch.ones(2), torch.ones(2).double()), {}, RuntimeError, "float64.*float32"),
    (discriminator_loss, (torch.ones(2), torch.ones(2, device="meta")), {}, RuntimeError, "meta.*cpu"),
    (discriminator_loss, (torch.ones(2), None), {}, TypeError, "fake_logits must be a Tensor, not NoneType"),
    (generator_loss, (torch.ones(2),), {"kind": "wgan"}, ValueError, "non_saturating, minimax.*'wgan'"),
    (generator_loss, (torch.ones(2),), {"target": 2}, ValueError, "target must be.*2"),
    (generator_loss, (torch.ones(2),), {"reduction": None}, ValueError, "reduction.*None"),
    (generator_loss, (torch.ones(2).long(),), {}, RuntimeError, "fake_logits must.*int64"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "arguments", "keywords", "error", "message"), BAD)
def test_bad_input(backend: str, function, arguments, keywords, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        function(*arguments, **keywords)


@given(
    sizes=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    scale=st.floats(0.01, 500.0),
    targets=st.tuples(*[st.floats(0, 1, allow_subnormal=DENORMALS)] * 2),
    reduction=st.sampled_from(["mean", "sum"]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_any_sizes_and_targets(backend: str, sizes, scale, targets, reduction, dtype, seed) -> None:
    torch.manual_seed(seed)
    inputs = [(scale * torch.randn(n)).to(dtype) for n in sizes]
    a, b = targets
    ours = functools.partial(discriminator_loss, real_target=a, fake_target=b, reduction=reduction)
    check_against_torch(ours, functools.partial(torch_discriminator_loss, a=a, b=b, reduction=reduction), inputs, ())
