"""The unreduced losses and their gradients have the strides that torch's have, whatever the layout of what comes in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conformance import assert_close_in_float64
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastgan.functional import binary_cross_entropy_with_logits, discriminator_loss, generator_loss


def strided(values: Tensor, *strides: int) -> Tensor:
    """The values in a tensor of the given strides."""
    out = torch.empty_strided(values.shape, strides, dtype=values.dtype)
    return out.copy_(values)


# Each a tensor of the layout, from a function that draws values of a shape.
LAYOUTS: dict[str, Callable[[Callable[..., Tensor]], Tensor]] = {
    "contiguous": lambda draw: draw(5, 4),
    "transposed": lambda draw: draw(4, 5).t(),
    "permuted": lambda draw: draw(2, 3, 4).permute(2, 0, 1),
    "channels_last": lambda draw: draw(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "channels_last_3d": lambda draw: draw(2, 3, 2, 4, 5).to(memory_format=torch.channels_last_3d),
    "channels_last of one channel": lambda draw: draw(2, 1, 4, 5).to(memory_format=torch.channels_last),
    "channels_last of one pixel": lambda draw: draw(2, 3, 1, 1).to(memory_format=torch.channels_last),
    "columns skipped": lambda draw: draw(5, 8)[:, ::2],
    "rows skipped": lambda draw: draw(10, 4)[::2],
    "transposed rows skipped": lambda draw: draw(8, 5)[::2].t(),
    "expanded rows": lambda draw: draw(1, 4).expand(5, 4),
    "expanded columns": lambda draw: draw(5, 1).expand(5, 4),
    "expanded 0-d": lambda draw: draw().expand(5, 4),
    "expanded in the middle": lambda draw: draw(4, 2, 1).permute(1, 2, 0).expand(2, 3, 4),
    "overlapping": lambda draw: draw(12).as_strided((5, 4), (2, 1)),
    "one column of a row": lambda draw: draw(1, 5).t(),
    "one row of a column": lambda draw: draw(5, 1).t(),
    "odd stride of one column": lambda draw: strided(draw(5, 1), 1, 7),
    "0-d": lambda draw: draw(),
    "one element": lambda draw: draw(1, 1),
    "no rows": lambda draw: draw(0, 4),
    "no columns, transposed": lambda draw: draw(0, 5).t(),
}


def layout(name: str, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    return LAYOUTS[name](lambda *shape: torch.rand(shape, generator=generator, dtype=dtype))


def half_of(index: int) -> Callable[..., Tensor]:
    """One unreduced half of the discriminator's loss; reduced, the sum of both."""

    def loss(x: Tensor, y: Tensor, reduction: str = "none") -> Tensor:
        result = discriminator_loss(x, y, real_target=0.9, reduction=reduction)
        return result[index] if reduction == "none" else result

    return loss


def half_of_torch(index: int) -> Callable[..., Tensor]:
    def loss(x: Tensor, y: Tensor, reduction: str = "none") -> Tensor:
        pair = [
            F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target), reduction=reduction)
            for logits, target in ((x, 0.9), (y, 0.0))
        ]
        return pair[index] if reduction == "none" else pair[0] + pair[1]

    return loss


def bce(function: Callable[..., Tensor], weighted: bool) -> Callable[..., Tensor]:
    """The loss of logits and targets, with weights that broadcast or without."""

    def loss(x: Tensor, t: Tensor, reduction: str = "none") -> Tensor:
        weights = {}
        if weighted:
            last = x.shape[-1] if x.dim() else 1
            weights = {
                "weight": torch.linspace(0.5, 2, max(last, 1), dtype=x.dtype)[:last].reshape(
                    () if x.dim() == 0 else -1
                ),
                "pos_weight": torch.full((1,) * x.dim(), 1.5, dtype=x.dtype),
            }
        return function(x, t, reduction=reduction, **weights)

    return loss


LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], int]] = {
    "bce": (bce(binary_cross_entropy_with_logits, False), bce(F.binary_cross_entropy_with_logits, False), 2),
    "weighted bce": (bce(binary_cross_entropy_with_logits, True), bce(F.binary_cross_entropy_with_logits, True), 2),
    "generator_loss": (
        lambda x, reduction="none": generator_loss(x, reduction=reduction),
        lambda x, reduction="none": F.binary_cross_entropy_with_logits(x, torch.ones_like(x), reduction=reduction),
        1,
    ),
    "minimax": (
        lambda x, reduction="none": generator_loss(x, kind="minimax", reduction=reduction),
        lambda x, reduction="none": -F.binary_cross_entropy_with_logits(x, torch.zeros_like(x), reduction=reduction),
        1,
    ),
    "relativistic": (
        lambda x, y, reduction="none": discriminator_loss(x, y, kind="relativistic", reduction=reduction),
        lambda x, y, reduction="none": F.binary_cross_entropy_with_logits(
            x - y, torch.ones_like(x - y), reduction=reduction
        ),
        2,
    ),
    "real half": (half_of(0), half_of_torch(0), 2),
    "fake half": (half_of(1), half_of_torch(1), 2),
}


def inputs(loss: str, names: tuple[str, ...]) -> list[Tensor]:
    """Logits and what goes beside them, of the layouts."""
    return [layout(names[i % len(names)], i).detach() for i in range(LOSSES[loss][2])]


def results(loss: Callable[..., Tensor], given: list[Tensor], cotangent: str, reduction: str) -> list[Tensor]:
    """Value, gradients as backward makes them, gradients as it makes them to be differentiated, second gradients."""
    leaves = [x.detach().requires_grad_() for x in given]
    value = loss(*leaves, reduction=reduction)
    grad = layout(cotangent, 9).reshape(()) if reduction == "none" and value.dim() == 0 else None
    if grad is None:
        grad = layout(cotangent, 9) if reduction == "none" else torch.tensor(0.7, dtype=torch.float64)
    wanted = [
        x for x in leaves if torch.autograd.grad(value.sum(), x, retain_graph=True, allow_unused=True)[0] is not None
    ]
    first = torch.autograd.grad(value, wanted, grad, retain_graph=True)
    recorded = torch.autograd.grad(value, wanted, grad, create_graph=True)
    second = torch.autograd.grad([g.square().sum() for g in recorded], wanted)
    return [value, *first, *recorded, *second]


def walked(tensor: Tensor) -> tuple[int, ...]:
    """The strides that lead anywhere: not those of dimensions of one element, nor of tensors without any."""
    return tuple(s for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1 and tensor.numel() > 0)


def assert_alike(ours: list[Tensor], torchs: list[Tensor], exact: int = 0) -> None:
    """Equal values and strides, of the first `exact` results those of single elements too."""
    for i, (a, b) in enumerate(zip(ours, torchs, strict=True)):
        assert_close_in_float64(a, b, 1e-9)
        strides = (a.stride(), b.stride()) if i < exact else (walked(a), walked(b))
        assert strides[0] == strides[1], f"result {i}: strides {a.stride()}, torch's {b.stride()}"


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_are_torchs(name, loss, reduction, backend) -> None:
    ours, torchs, _ = LOSSES[loss]
    given = inputs(loss, (name,))
    assert_alike(results(ours, given, name, reduction), results(torchs, given, name, reduction), exact=2)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("kind", ["hinge", "wasserstein", "least_squares"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_other_terms_have_the_layouts_of_the_cross_entropy(name, kind, reduction, compiled) -> None:
    """PyTorch itself has none in common for them: of (x - 1)^2 and relu(1 - x) gradients are laid out differently."""
    made = []
    for each in (kind, "bce"):
        leaves = [x.detach().requires_grad_() for x in inputs("real half", (name,))]
        losses = discriminator_loss(*leaves, kind=each, reduction=reduction)
        value = losses if reduction != "none" else losses[0]
        cotangent = layout(name, 9) if reduction == "none" else torch.tensor(0.7, dtype=torch.float64)
        wanted = leaves[: 1 if reduction == "none" else 2]
        first = torch.autograd.grad(value, wanted, cotangent, create_graph=True)
        second: list[Tensor] = []
        if kind != "wasserstein":  # whose second derivatives are none
            second = list(torch.autograd.grad([g.square().sum() for g in first], wanted))
        made.append([walked(t) for t in (*first, *second)])
    assert made[0] == made[1]


MIXED = ("contiguous", "transposed", "columns skipped", "transposed rows skipped", "expanded rows", "expanded 0-d")


@pytest.mark.parametrize("loss", ["bce", "weighted bce", "relativistic"])
@pytest.mark.parametrize("target", MIXED)
@pytest.mark.parametrize("logits", MIXED)
def test_layouts_that_differ(logits, target, loss, backend) -> None:
    ours, torchs, _ = LOSSES[loss]
    given = inputs(loss, (logits, target))
    for cotangent in ("contiguous", "transposed", "expanded rows"):
        assert_alike(results(ours, given, cotangent, "none"), results(torchs, given, cotangent, "none"))


WEIGHTS: dict[str, Callable[[], Tensor]] = {
    "one": lambda: torch.rand(()),
    "a column": lambda: torch.rand(4),
    "a row": lambda: torch.rand(5, 1),
    "all": lambda: torch.rand(5, 4),
    "all, transposed": lambda: torch.rand(4, 5).t(),
    "expanded": lambda: torch.rand(4).expand(5, 4),
}


@pytest.mark.parametrize("pos_weight", [None, *WEIGHTS])
@pytest.mark.parametrize("weight", [None, *WEIGHTS])
@pytest.mark.parametrize("name", ["contiguous", "transposed"])
def test_weights_of_every_layout(name, weight, pos_weight, backend) -> None:
    weights = [None if w is None else WEIGHTS[w]().double() for w in (weight, pos_weight)]

    def of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, t, reduction: function(x, t, weights[0], reduction=reduction, pos_weight=weights[1])

    given = [layout(name, 0), layout(name, 1)]
    pair = (binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits)
    assert_alike(*(results(of(function), given, "contiguous", "none") for function in pair))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["transposed", "channels_last", "columns skipped", "expanded rows"])
def test_layouts_in_other_dtypes(name, dtype, backend) -> None:
    for loss in LOSSES:
        ours, torchs, count = LOSSES[loss]
        given = [layout(name, i, dtype) for i in range(count)]
        strides = []
        for function in (ours, torchs):
            leaves = [x.detach().requires_grad_() for x in given]
            value = function(*leaves)
            gradients = torch.autograd.grad(value, leaves, torch.ones_like(value), allow_unused=True)
            strides.append([value.stride(), *(g.stride() for g in gradients if g is not None)])
        assert strides[0] == strides[1], loss


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_tensors_without_memory_have_the_layouts_too(name, loss, compiled) -> None:
    ours, torchs, count = LOSSES[loss]
    given = inputs(loss, (name,))
    expected = [walked(r) for r in results(torchs, given, name, "none")[: 1 + count]]
    with FakeTensorMode() as mode:
        leaves = [mode.from_tensor(x).requires_grad_() for x in given]
        value = ours(*leaves)
        gradients = torch.autograd.grad(value, leaves, torch.ones_like(value), allow_unused=True)
        made = [walked(value), *(walked(g) for g in gradients if g is not None)]
    assert made == expected[: len(made)]


@pytest.mark.deep
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["contiguous", "transposed", "channels_last", "columns skipped", "expanded rows"])
def test_compiled_losses_have_the_layouts_too(name, loss, dynamic, compiled) -> None:
    ours, torchs, _ = LOSSES[loss]
    torch._dynamo.reset()
    function = torch.compile(ours, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    made = []
    for each in (function, torchs):
        leaves = [x.detach().requires_grad_() for x in inputs(loss, (name,))]
        value = each(*leaves)
        gradients = torch.autograd.grad(value, leaves, torch.ones_like(value), allow_unused=True)
        made.append([value, *(g for g in gradients if g is not None)])
    assert_alike(*made)
