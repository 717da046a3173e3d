"""The error bound of the conformance suite, and the inputs it is held on."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from fastgan import reference

ACTIVATIONS = tuple(reference.ACTIVATIONS)


def _module(name: str) -> nn.Module:
    kind = reference.ACTIVATIONS[name].module
    return kind(negative_slope=0.2) if "negative_slope" in inspect.signature(kind).parameters else kind()


ACTIVATION_MODULES: dict[str, Callable[[], nn.Module]] = {n: functools.partial(_module, n) for n in ACTIVATIONS}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
REDUCTIONS = ("none", "mean", "sum")

Function = Callable[..., Tensor]


def derivatives(function: Function, inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Tensor]:
    """Value, gradients and second gradients of a function of tensors.

    The first gradients are taken against cotangents[0], the second against cotangents[1:], one for each input. What
    autograd reports as unconnected is zero.
    """
    inputs = [x.detach().requires_grad_() for x in inputs]
    value = function(*inputs)
    first = torch.autograd.grad(value, inputs, cotangents[0].expand_as(value), create_graph=True, allow_unused=True)
    first = [torch.zeros_like(x) if g is None else g for g, x in zip(first, inputs, strict=True)]
    seed = sum((g * c).sum() for g, c in zip(first, cotangents[1:], strict=True))
    second = [None] * len(inputs)
    if seed.requires_grad:
        second = torch.autograd.grad(seed, inputs, allow_unused=True)
    second = [torch.zeros_like(x) if g is None else g for g, x in zip(second, inputs, strict=True)]
    return [value.detach(), *(g.detach() for g in first), *second]


def largest_error(value: Tensor, exact: Tensor) -> float:
    """Largest difference, relative to the largest exact element where that is above one."""
    if exact.numel() == 0:
        return 0.0
    difference = (value.double() - exact).abs().max().item()
    return difference / max(1.0, exact.abs().max().item())


def leaves(tree: Any) -> list[Any]:
    """What lists, tuples, dictionaries and iterators hold, in order; a gradient that is None is a leaf."""
    return tree_leaves(list(tree) if isinstance(tree, Iterator) else tree)


def overall_error(values: Any, exact: Any) -> float:
    """The norm of all differences together: for 16-bit results, of which the largest single error is luck."""
    pairs = zip(leaves(values), leaves(exact), strict=True)
    return torch.cat([(value.double() - true.double()).flatten() for value, true in pairs]).norm().item()


def assert_within_bound(ours: Any, torchs: Any, exact: Any) -> None:
    """Error against float64 at most twice PyTorch's own on the same input, plus 1e-6 (1e-10 in float64).

    The three are alike: tensors, or lists, tuples or dictionaries of tensors and None. What is infinite or NaN in
    PyTorch is so in ours. Of a 16-bit result half a unit in the last place is never too much: the last rounding alone
    may be that, and where PyTorch's error is less, of one element say, it was lucky.
    """
    for i, (a, b, e) in enumerate(zip(leaves(ours), leaves(torchs), leaves(exact), strict=True)):
        if b is None:
            assert a is None, i
            continue
        assert a.dtype == b.dtype, i
        assert a.shape == b.shape, i
        if not a.dtype.is_floating_point:
            assert torch.equal(a, b), i
            continue
        e, finite = e.to(torch.float64), b.isfinite()
        assert_same_values(a[~finite], b[~finite], i)
        a, b, e = a[finite], b[finite], e[finite]
        slack = 1e-10 if a.dtype == torch.float64 else 1e-6
        bound = 2 * largest_error(b, e) + slack
        if a.dtype.itemsize == 2:
            bound = max(bound, torch.finfo(a.dtype).eps / 2)
        assert largest_error(a, e) <= bound, f"result {i}: error {largest_error(a, e):.3g}, bound {bound:.3g}"


def assert_close_in_float64(ours: Any, torchs: Any, bound: float = 1e-10) -> None:
    """Two float64 computations of the same differ by `bound` at most, relative to the largest element if above one.

    A float64 rounding is 1.1e-16, so that 1e-10 is what a million of them amount to: far more than the tests' sums
    have, and far less than any mistake makes. What is not float64, as the optimizers' counts of steps, is equal.
    """
    for i, (a, b) in enumerate(zip(leaves(ours), leaves(torchs), strict=True)):
        if not isinstance(b, Tensor):
            assert a == b, i
            continue
        assert a.dtype == b.dtype, i
        assert a.shape == b.shape, i
        if b.dtype not in (torch.float64, torch.complex128):
            assert_same_values(a, b, i)
            continue
        finite = b.isfinite()
        assert_same_values(a[~finite], b[~finite], i)
        a, b = a[finite].detach(), b[finite].detach()
        if b.numel() > 0:
            error = (a - b).abs().max().item() / max(1.0, b.abs().max().item())
            assert error <= bound, f"result {i}: difference {error:.3g}, bound {bound:.3g}"


def assert_same_values(a: Tensor, b: Tensor, place: Any = "") -> None:
    """Exactly, NaN beside NaN."""
    assert bool(((a == b) | ((a != a) & (b != b))).all()), f"result {place}: {a} is not {b}"


def in_double(module: nn.Module) -> nn.Module:
    """A copy of a module in float64, whose results count as exact."""
    return copy.deepcopy(module).double()


def as_double(tree: Any) -> Any:
    """The tensors of a tree in float64, detached; those of integers as they are."""

    def convert(leaf: Any) -> Any:
        floating = isinstance(leaf, Tensor) and leaf.dtype.is_floating_point
        return leaf.detach().double().requires_grad_(leaf.requires_grad) if floating else leaf

    return tree_map(convert, tree)


def here(tree: Any) -> Any:
    """The tensors of a tree that lie on the CPU, where the test makes new ones (see run_on of conftest.py).

    For what is made before a test begins: constants of a module, what tests are parametrised with, what a generator of
    the CPU draws.
    """
    device = torch.get_default_device()
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) and leaf.is_cpu else leaf, tree)


Results = tuple[list[Tensor], list[Tensor], list[Tensor]]


def results_of_both(ours: Function, torchs: Function, inputs: Sequence[Tensor], value_shape: Sequence[int]) -> Results:
    """Value, gradients and second gradients of `ours`, of `torchs`, and of `torchs` in float64."""
    dtype = inputs[0].dtype
    cotangents = [torch.randn(value_shape).to(dtype), *(torch.randn(x.shape).to(dtype) for x in inputs)]
    exact = derivatives(torchs, [x.double() for x in inputs], [c.double() for c in cotangents])
    return derivatives(ours, inputs, cotangents), derivatives(torchs, inputs, cotangents), exact


def check_against_torch(ours: Function, torchs: Function, inputs: Sequence[Tensor], value_shape: Sequence[int]) -> None:
    """Hold value, gradients and second gradients of `ours` to the error bound against `torchs`."""
    assert_within_bound(*results_of_both(ours, torchs, inputs, value_shape))
