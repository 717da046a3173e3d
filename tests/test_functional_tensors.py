"""Tensors of every kind through the fused functions: lazy signs, zeros without memory, in-place uses, layouts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conformance import ACTIVATIONS, assert_close_in_float64
from torch import Tensor, nn

from fastgan import reference
from fastgan.functional import (
    binary_cross_entropy_with_logits,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    linear_act,
    mlp,
    r1_penalty,
    segmented_activation,
)
from fastgan.nn import MLP, fuse

pytestmark = pytest.mark.usefixtures("backend")


def negative(*shape: int) -> Tensor:
    """Values whose memory holds their negation: the imaginary part of a conjugate."""
    out = torch.view_as_complex(torch.randn(*shape, 2, dtype=torch.float64)).conj().imag
    assert out.is_neg()
    return out


WEIGHT, BIAS, SECOND = torch.randn(6, 4), torch.randn(6), torch.randn(3, 6)
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "bce": (binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits, ((5, 4), (5, 4))),
    "weighted bce": (
        lambda x, t, w, p: binary_cross_entropy_with_logits(x, t, w.detach(), reduction="none", pos_weight=p.detach()),
        lambda x, t, w, p: F.binary_cross_entropy_with_logits(
            x, t, w.detach(), reduction="none", pos_weight=p.detach()
        ),
        ((5, 4), (5, 4), (4,), (4,)),
    ),
    "discriminator_loss": (
        discriminator_loss,
        lambda x, y: F.softplus(-x).mean() + F.softplus(y).mean(),
        ((5, 4), (5, 4)),
    ),
    "generator_loss": (
        lambda x: generator_loss(x, reduction="none"),
        lambda x: F.binary_cross_entropy_with_logits(x, torch.ones_like(x), reduction="none"),
        ((5, 4),),
    ),
    "paired losses": (
        lambda x, y: generator_loss(x, y, kind="relativistic", reduction="none"),
        lambda x, y: F.binary_cross_entropy_with_logits(x - y, torch.ones_like(x), reduction="none"),
        ((5, 4), (5, 4)),
    ),
    "linear_act": (
        lambda x, w, b: linear_act(x, w, b, "tanh"),
        lambda x, w, b: torch.tanh(F.linear(x, w, b)),
        ((5, 4), (6, 4), (6,)),
    ),
    "segmented_activation": (
        lambda x: segmented_activation(x, [3, 1], ["softmax", "tanh"]),
        lambda x: torch.cat([x[..., :3].softmax(-1), x[..., 3:].tanh()], -1),
        ((5, 4),),
    ),
    "mlp": (
        lambda x, w, b, v: mlp(x, [w, v], [b, None], ["silu", "leaky_relu"], [0.0, 0.2]),
        lambda x, w, b, v: F.leaky_relu(F.linear(F.silu(F.linear(x, w, b)), v), 0.2),
        ((5, 4), (6, 4), (6,), (3, 6)),
    ),
}


def derivatives(function: Callable[..., Tensor], given: list[Tensor], cotangent: Callable[..., Tensor]) -> list[Tensor]:
    # Not detached, so that the lazy sign reaches the function: a view of a leaf.
    leaves = [x.resolve_neg().clone().requires_grad_() for x in given]
    views = [torch._neg_view(-x) if g.is_neg() else x for x, g in zip(leaves, given, strict=True)]
    value = function(*views)
    grad = cotangent(*value.shape)
    first = torch.autograd.grad(value, leaves, grad, create_graph=True, allow_unused=True)
    first = [torch.zeros_like(x) if g is None else g for g, x in zip(first, leaves, strict=True)]
    seed = sum(g.square().sum() for g in first)
    second = torch.autograd.grad(seed, leaves, allow_unused=True) if seed.requires_grad else [None] * len(leaves)
    second = [torch.zeros_like(x) if g is None else g for g, x in zip(second, leaves, strict=True)]
    return [value, *first, *second]


COTANGENTS: dict[str, Callable[..., Tensor]] = {
    "negative": lambda *shape: torch._neg_view(
        torch.linspace(-1, 2, torch.Size(shape).numel()).double().view(shape)
    ),
    "zero": lambda *shape: torch._efficientzerotensor(
        shape, dtype=torch.float64, device=torch.get_default_device()
    ),
    "expanded": lambda *shape: torch.tensor(0.7, dtype=torch.float64).expand(shape),
    "transposed": lambda *shape: torch.linspace(-1, 2, torch.Size(shape).numel()).double().view(shape[::-1]).movedim(
        tuple(range(len(shape))), tuple(range(len(shape)))[::-1]
    ),
}  # fmt: skip


@pytest.mark.parametrize("cotangent", COTANGENTS)
@pytest.mark.parametrize("lazy", [False, True], ids=["plain", "lazy sign"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_lazy_signs_zeros_and_layouts_of_gradients(name, lazy, cotangent) -> None:
    ours, torchs, shapes = FUNCTIONS[name]
    given = [negative(*s) if lazy else torch.randn(s, dtype=torch.float64) for s in shapes]
    made = [derivatives(function, given, COTANGENTS[cotangent]) for function in (ours, torchs)]
    for a, b in zip(*made, strict=True):
        assert_close_in_float64(a, b, 1e-9)
        assert not a.is_neg()


def test_lazy_signs_in_modules_and_penalties() -> None:
    input, other = negative(5, 4), negative(5, 4)
    module = MLP([4, 6, 1]).double()
    plain = nn.Sequential(*module)
    for change in (lambda m: m, fuse):
        assert_close_in_float64(change(module)(input), plain(input))
        assert_close_in_float64(r1_penalty(module, input), r1_penalty(plain, input.resolve_neg()))
    penalties = []
    for critic, x, y in ((module, input, other), (plain, input.resolve_neg(), other.resolve_neg())):
        torch.manual_seed(2)
        penalties.append(gradient_penalty(critic, x, y))
    assert_close_in_float64(*penalties)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("form", ["linear_act", "mlp", "module"])
def test_an_output_may_be_changed_in_place_where_torchs_may(form, activation) -> None:
    outcomes = []
    for function in (mlp, reference.mlp):
        x = torch.randn(
            5, 4, dtype=torch.float64, generator=torch.Generator(torch.get_default_device()).manual_seed(1)
        ).requires_grad_()
        w = torch.randn(
            6, 4, dtype=torch.float64, generator=torch.Generator(torch.get_default_device()).manual_seed(2)
        ).requires_grad_()
        if form == "module" and function is mlp:
            module = MLP([4, 6], output_activation=activation, negative_slope=0.2, bias=False).double()
            module[0].weight = nn.Parameter(w.detach().clone())
            w, out = module[0].weight, module(x)
        elif form == "linear_act" and function is mlp:
            out = linear_act(x, w, None, activation, 0.2)
        else:
            out = function(x, [w], [None], [activation], [0.2])
        out += 1
        try:
            outcomes.append(torch.autograd.grad(out.square().sum(), [x, w]))
        except RuntimeError as error:
            outcomes.append(("modified by an inplace operation" in str(error),))
    assert_close_in_float64(*outcomes)


@pytest.mark.parametrize(
    "shape",
    [(5, 4), (4,), (2, 3, 4), (0, 4), (2, 0, 4), (1, 4)],
    ids=str,
)
@pytest.mark.parametrize("turned", [False, True])
def test_outputs_have_the_strides_of_torchs(turned, shape) -> None:
    x = torch.randn(shape[::-1]).permute(*range(len(shape))[::-1]) if turned else torch.randn(shape)
    for activation in ACTIVATIONS:
        ours, torchs = (
            f(x, [WEIGHT.to(x.device)], [BIAS.to(x.device)], [activation], [0.2]) for f in (mlp, reference.mlp)
        )
        assert ours.shape == torchs.shape
        assert ours.stride() == torchs.stride()
        assert ours.is_contiguous()
        assert not ours.requires_grad


@pytest.mark.parametrize("changed", [0, 1, 2, 3])
def test_what_was_changed_between_forward_and_backward_is_an_error_as_in_torch(changed) -> None:
    """Beyond torch's errors the fused layers keep what they may need: never fewer errors, and never wrong numbers."""
    for function in (mlp, reference.mlp):
        leaves = [torch.randn(s).requires_grad_() for s in ((5, 4), (6, 4), (6,), (3, 6))]
        x, w, b, v = (leaf * 1 for leaf in leaves)
        out = function(x, [w, v], [b, None], ["tanh", "identity"], [0.0, 0.0])
        with torch.no_grad():
            (x, w, b, v)[changed].mul_(2)
        if changed == 2:  # nothing reads a bias again
            torch.autograd.grad(out.sum(), leaves)
            continue
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(out.sum(), leaves)


def test_flags_of_outputs() -> None:
    x, w = torch.randn(5, 4), torch.randn(3, 4)
    for function in (mlp, reference.mlp):
        assert not function(x, [w], [None], ["relu"], [0.0]).requires_grad
        assert function(x, [w.clone().requires_grad_()], [None], ["relu"], [0.0]).requires_grad
        with torch.no_grad():
            assert not function(x, [w.clone().requires_grad_()], [None], ["relu"], [0.0]).requires_grad
        with torch.inference_mode():
            assert function(x, [w], [None], ["relu"], [0.0]).is_inference()
