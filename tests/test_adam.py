"""`adam_`, the update of many tensors in one kernel, against torch.optim's Adam and AdamW."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from conformance import DTYPES, assert_within_bound, in_double, largest_error, overall_error
from conftest import BACKENDS, DENORMALS, run_on_or_skip
from torch import Tensor

import fastgan
from fastgan import backend as fastgan_backend

SIZES = ((), (0,), (1,), (7, 3), (257,), (70, 130))


@pytest.fixture(params=[name for name in BACKENDS if name != "reference"], autouse=True)
def compiled_backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with run_on_or_skip(request.param):
        yield


class Ours:
    """A loop over `adam_` with the state that torch.optim keeps."""

    def __init__(self, params: list[Tensor], lr: float | Tensor, decoupled: bool, **options) -> None:
        self.params = params
        self.lr, self.decoupled = lr, decoupled
        self.options = {"betas": (0.9, 0.999), "weight_decay": 0.0, "eps": 1e-8, "amsgrad": False, "maximize": False}
        self.options.update(options)
        self.moments = [[torch.zeros_like(p) for p in params] for _ in range(3)]
        self.steps = [torch.zeros(()) for _ in params]

    def step(self, grads: list[Tensor]) -> None:
        o, tensor = self.options, isinstance(self.lr, Tensor)
        fastgan_backend.ops.adam_(
            self.params,
            grads,
            *self.moments[:2],
            self.moments[2] if o["amsgrad"] else [],
            self.steps,
            self.lr if tensor else None,
            0.0 if tensor else self.lr,
            *o["betas"],
            o["weight_decay"],
            o["eps"],
            o["amsgrad"],
            o["maximize"],
            self.decoupled,
        )


def run_torch(params: list[Tensor], grads: list[list[Tensor]], decoupled: bool, lr: float, **options):
    params = [p.clone().requires_grad_() for p in params]
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimizer = kind(params, lr=lr, foreach=False, **{"weight_decay": 0.0, **options})
    for step in grads:
        for p, g in zip(params, step, strict=True):
            p.grad = g.clone()
        optimizer.step()
    return [p.detach() for p in params]


def check(dtype: torch.dtype, sizes, decoupled: bool = False, steps: int = 20, lr=0.01, **options) -> None:
    params = [torch.randn(size).to(dtype) for size in sizes]
    grads = [[torch.randn(size).to(dtype) for size in sizes] for _ in range(steps)]
    rate = float(lr)
    torchs = run_torch(params, grads, decoupled, rate, **options)
    exact = run_torch(
        [p.double() for p in params], [[g.double() for g in step] for step in grads], decoupled, rate, **options
    )
    ours = Ours([p.clone() for p in params], lr, decoupled, **options)
    for step in grads:
        ours.step(step)
    assert all(s.item() == steps for s in ours.steps)
    if dtype.itemsize == 2:  # each step rounds, so that the largest error of a few elements is luck
        if params:  # where torch's squares underflow, 0 / 0 is NaN; ours are float until they are stored
            kept = [
                [x[b.isfinite()] for x, b in zip(those, torchs, strict=True)] for those in (ours.params, torchs, exact)
            ]
            assert overall_error(kept[0], kept[2]) <= 2 * overall_error(kept[1], kept[2]) + 1e-6
        return
    # One bound for the list: a tensor of one element may be exact in PyTorch by luck.
    bound = 2 * max((largest_error(b, e) for b, e in zip(torchs, exact, strict=True)), default=0.0) + 1e-6
    for a, e in zip(ours.params, exact, strict=True):
        assert largest_error(a, e) <= bound


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decoupled", [False, True], ids=["adam", "adamw"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1},
        {"amsgrad": True},
        {"maximize": True, "weight_decay": 0.1},
        {"amsgrad": True, "maximize": True, "betas": (0.5, 0.9), "eps": 1e-4},
    ],
    ids=str,
)
def test_follows_torch(dtype: torch.dtype, decoupled: bool, options: dict) -> None:
    check(dtype, SIZES, decoupled, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_follows_torch_without_subnormal_floats(dtype: torch.dtype) -> None:
    """A half is no subnormal float, however small: the squares of small gradients are not flushed to zero."""
    torch.set_flush_denormal(True)
    try:
        check(dtype, SIZES)
    finally:
        torch.set_flush_denormal(not DENORMALS)


def test_many_tensors() -> None:
    check(torch.float32, [(3,)] * 150, steps=3)


def test_learning_rate_in_a_tensor() -> None:
    check(torch.float32, SIZES, lr=torch.tensor(0.02))


def test_no_tensors() -> None:
    Ours([], 0.1, False).step([])


def test_memory_that_is_not_aligned() -> None:
    param, twin = torch.randn(33)[1:], None
    twin = param.clone()
    grad = torch.randn(32)
    for p in (param, twin):
        Ours([p], 0.1, False).step([grad])
    assert torch.equal(param, twin)


def test_parameters_of_a_module_and_their_versions() -> None:
    module = fastgan.nn.MLP([3, 4, 1])
    twins = [copy.deepcopy(module), in_double(module)]
    params = list(module.parameters())
    module(torch.ones(2, 3)).sum().backward()
    versions = [p._version for p in params]
    with torch.no_grad():
        Ours(params, 0.1, False).step([p.grad for p in params])
    for twin in twins:
        for p, q in zip(twin.parameters(), params, strict=True):
            p.grad = q.grad.to(p.dtype)
        torch.optim.Adam(twin.parameters(), lr=0.1).step()
    assert all(p._version > v for p, v in zip(params, versions, strict=True))
    assert_within_bound(*(list(m.parameters()) for m in (module, *twins)))


def test_a_gradient_through_a_changed_parameter_is_an_error() -> None:
    param = torch.randn(3, requires_grad=True)
    loss = param.square().sum()
    with torch.no_grad():
        Ours([param], 0.1, False).step([torch.ones(3)])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda o, g: g.pop(), "grads must have 2 tensors, as params, not 1"),
        (
            lambda o, g: g.__setitem__(1, torch.ones(3)),
            r"grads\[1\] of shape \[3\].*must be contiguous and have the shape \[2, 3\]",
        ),
        (lambda o, g: g.__setitem__(1, g[1].double()), r"grads\[1\].*Double"),
        (lambda o, g: o.steps.pop(), "state_steps must have 2 tensors"),
        (lambda o, g: o.steps.__setitem__(0, torch.zeros(2)), "a step must be one float32 element"),
        (
            lambda o, g: setattr(o, "lr", torch.tensor(0.1, dtype=torch.float64)),
            "lr_tensor must be one float32 element",
        ),
        (lambda o, g: o.params.__setitem__(1, torch.ones(3, 2).t()), r"params\[1\].*must be contiguous"),
    ],
)
def test_errors(device: str, change, sentence: str) -> None:
    ours, grads = Ours([torch.ones(3), torch.ones(2, 3)], 0.1, False), [torch.ones(3), torch.ones(2, 3)]
    change(ours, grads)
    if device == "meta":
        ours.params, grads = [p.to("meta") for p in ours.params], [g.to("meta") for g in grads]
        ours.moments = [[m.to("meta") for m in list] for list in ours.moments]
        ours.steps = [s.to("meta") for s in ours.steps]
        ours.lr = ours.lr.to("meta") if isinstance(ours.lr, Tensor) else ours.lr
    with pytest.raises(RuntimeError, match=sentence):
        ours.step(grads)
