"""Layers with few outputs or few inputs, for which the CPU has kernels of their own, and calls that skip the checks."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import warm
from conformance import DTYPES, assert_within_bound
from extent import rest
from torch import Tensor

import fastgan
from fastgan import backend
from fastgan import functional as f
from fastgan.reference import ACTIVATIONS

# (batch, in, out): every number of few outputs and inputs, sums shorter and longer than a vector, whole vectors and
# not, single rows, rows left over, and nothing at all.
SHAPES = [
    (64, 256, 1),
    (9, 17, 2),
    (10, 33, 3),
    (6, 100, 4),
    (256, 2, 128),
    (33, 1, 7),
    (31, 3, 19),
    (5, 4, 64),
    (64, 1, 1),
    (3, 4, 4),
    (1, 1030, 1),
    (130, 2, 1030),
    (0, 5, 1),
]
# More rows than one part of a sum over them has.
TALL = [(8200, 70, 2), (8200, 3, 40)]


def plain(x: Tensor, w: Tensor, b: Tensor | None, activation: str, slope: float) -> Tensor:
    return ACTIVATIONS[activation].function(F.linear(x, w, b), slope)


def layer(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    batch, width, out = shape
    made = torch.randn(batch, width), torch.randn(out, width) / width**0.5, torch.randn(out), torch.randn(batch, out)
    *inputs, grad_output = (t.to(dtype) for t in made)
    return inputs, grad_output


def results(
    function: Callable[..., Tensor], inputs: list[Tensor], grad_output: Tensor, activation: str, slope: float = 0.2
) -> list[Tensor]:
    """The output and all gradients; without a bias where only two inputs are given."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    value = function(*leaves, *[None] * (3 - len(leaves)), activation, slope)
    return [value.detach(), *torch.autograd.grad(value, leaves, grad_output)]


def check_layers(dtypes: tuple[torch.dtype, ...] = DTYPES, shapes: list[tuple[int, int, int]] = SHAPES) -> None:
    for dtype, shape, activation in itertools.product(dtypes, shapes, ("relu", "leaky_relu", "gelu")):
        inputs, grad_output = layer(shape, dtype)
        for given in (inputs, inputs[:2]):
            wide = [t.double() for t in given]
            assert_within_bound(
                results(f.linear_act, given, grad_output, activation),
                results(plain, given, grad_output, activation),
                results(plain, wide, grad_output.double(), activation),
            )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_thin_layers_and_their_gradients_are_as_exact_as_torchs(backend: str, dtype: torch.dtype) -> None:
    check_layers((dtype,))


def test_sums_over_many_rows(backend: str) -> None:
    check_layers((torch.float32,), TALL)


# On the oldest, make check runs this whole file.
@pytest.mark.parametrize("isa", [rest("baseline"), pytest.param("avx2", marks=pytest.mark.deep), "avx512"])
def test_every_instruction_set_has_them(compiled: None, isa: str) -> None:
    code = "import torch, test_thin_layers as t; torch.manual_seed(0); t.check_layers()"
    environment = {**os.environ, "FASTGAN_ISA": isa, "FASTGAN_BACKEND": "auto", "PYTHONPATH": os.path.dirname(__file__)}
    done = warm.run(["-c", code], Path(__file__).parent.parent, environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shape", [(40, 20, 1), (40, 20, 3), (40, 2, 20), (40, 1, 1)], ids=str)
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh"])
def test_rows_and_columns_may_be_set_off(backend: str, shape: tuple[int, int, int], activation: str) -> None:
    (x, w, b), grad_output = layer(shape, torch.float32)
    strided = [
        torch.cat([x, x], 1)[:, : shape[1]],
        w.t().contiguous().t(),
        torch.stack([b, b], 1)[:, 0],
    ]
    expanded = grad_output[:1].expand_as(grad_output)
    for inputs in (strided, [x.t().contiguous().t(), *strided[1:]]):
        for grad in (grad_output, expanded, torch.cat([grad_output] * 2, 1)[:, : shape[2]]):
            assert_within_bound(
                results(f.linear_act, inputs, grad, activation),
                results(plain, inputs, grad, activation),
                results(plain, [t.double() for t in inputs], grad.double(), activation),
            )


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("shape", [(6, 21, 1), (6, 3, 21), (6, 37, 4)], ids=str)
def test_what_is_not_finite_goes_where_torch_has_it(backend: str, shape: tuple[int, int, int], value: float) -> None:
    """In each place of an input, also among those that a last vector has twice."""
    inputs, grad_output = layer(shape, torch.float64)
    for place in range(shape[1]):
        changed = [inputs[0].clone(), *inputs[1:]]
        changed[0][2, place] = value
        found = [results(function, changed, grad_output, "relu") for function in (f.linear_act, plain)]
        for ours, torchs in zip(*found, strict=True):
            assert torch.equal(ours.isnan(), torchs.isnan())
            assert torch.equal(ours.isposinf(), torchs.isposinf())
            assert torch.equal(ours.isneginf(), torchs.isneginf())


def test_the_same_bits_on_any_number_of_threads(compiled: None) -> None:
    before, found = torch.get_num_threads(), []
    with fastgan.use_backend("auto"):
        try:
            for shape in ((20000, 70, 1), (20000, 3, 90)):
                inputs, grad_output = layer(shape, torch.float32)
                for threads in (1, 2):
                    torch.set_num_threads(threads)
                    found.append(results(f.linear_act, inputs, grad_output, "tanh"))
                assert all(torch.equal(a, b) for a, b in zip(found[-2], found[-1], strict=True))
        finally:
            torch.set_num_threads(before)


# Calls that skip Python's checks.


def call_linear_act(**changes: Any) -> Tensor:
    x, w, b = torch.ones(6, 3), torch.ones(4, 3), torch.ones(4)
    arguments = {"input": x, "weight": w, "bias": b, "activation": "relu", "negative_slope": 0.2, **changes}
    return f.linear_act(**arguments)


def call_mlp(**changes: Any) -> Tensor:
    arguments = {
        "input": torch.ones(6, 3),
        "weights": [torch.ones(4, 3), torch.ones(2, 4)],
        "biases": [torch.ones(4), None],
        "activations": ["relu", "tanh"],
        "negative_slopes": [0.2, 0.2],
        **changes,
    }
    return f.mlp(**arguments)


WRONG = {
    call_linear_act: [
        {"activation": "rellu"},
        {"activation": 3},
        {"negative_slope": float("nan")},
        {"negative_slope": float("inf")},
        {"negative_slope": "0.2"},
        {"negative_slope": True},
        {"input": torch.ones(())},
        {"input": torch.ones(6, 3, dtype=torch.int64)},
        {"input": torch.ones(6, 3, dtype=torch.complex64)},
        {"input": [1.0, 2.0, 3.0]},
        {"input": None},
        {"input": torch.ones(6, 2)},
        {"weight": torch.ones(3)},
        {"weight": torch.ones(4, 3).double()},
        {"weight": torch.ones(4, 3, device="meta")},
        {"weight": None},
        {"bias": torch.ones(5)},
        {"bias": torch.ones(4, 1)},
        {"bias": torch.ones(4).half()},
        {"bias": 1.0},
    ],
    call_mlp: [
        {"weights": []},
        {"weights": [torch.ones(4, 3)]},
        {"weights": [torch.ones(4, 3), torch.ones(2, 5)]},
        {"weights": [torch.ones(4, 3), None]},
        {"weights": torch.ones(2, 4, 3)},
        {"biases": [None]},
        {"biases": [torch.ones(4), torch.ones(3)]},
        {"activations": ["relu"]},
        {"activations": ["relu", "rellu"]},
        {"activations": "relu"},
        {"negative_slopes": [0.2]},
        {"negative_slopes": [0.2, float("inf")]},
        {"negative_slopes": [0.2, None]},
        {"input": torch.ones(6, 4)},
        {"input": torch.ones(())},
    ],
}


@pytest.mark.parametrize(
    ("call", "changes"),
    [
        pytest.param(call, changes, id=f"{call.__name__}-{'-'.join(changes)}-{number}")
        for call, all_changes in WRONG.items()
        for number, changes in enumerate(all_changes)
    ],
)
def test_errors_are_those_of_the_checks(compiled: None, call: Callable[..., Tensor], changes: dict[str, Any]) -> None:
    said = []
    for name in ("auto", "cpu", "reference"):
        with fastgan.use_backend(name):
            try:
                said.append(call(**changes).tolist())
            except Exception as error:
                said.append((type(error), str(error)))
    assert said[0] == said[1] == said[2]


class Subclass(Tensor):
    pass


def test_the_usual_call_is_direct_and_no_other(compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Module:
        """The compiled module, noting what its functions answer."""

        def __getattr__(self, name: str) -> Any:
            own = getattr(backend.module, name)

            def noted(*arguments: Any) -> Any:
                answers.append(own(*arguments))
                return answers[-1]

            return noted

    answers: list[Tensor | None] = []
    x, w, b = torch.randn(6, 3), torch.randn(4, 3), torch.randn(4)
    calls = (
        lambda x, w: f.linear_act(x, w, b, "gelu", 0.2),
        lambda x, w: f.mlp(x, (w, w.new_ones(2, 4)), None, ["leaky_relu", "tanh"]),
    )
    with fastgan.use_backend("auto"):
        for call in calls:
            call(x, w)  # the kernels are checked
            monkeypatch.setattr(backend, "_direct", Module())
            for weight in (w, w.requires_grad_(), torch.nn.Parameter(w.detach())):
                answers.clear()
                value = call(x, weight)
                assert value is answers[0]
                assert value.requires_grad == weight.requires_grad
            answers.clear()
            call(x, w.detach().as_subclass(Subclass))
            assert answers == [None]
            answers.clear()
            torch.func.vmap(lambda row, call=call: call(row, w.detach()))(x)
            assert answers == [None]
            monkeypatch.undo()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_direct_and_checked_calls_give_the_same_bits(compiled: None, dtype: torch.dtype) -> None:
    for shape, activation in itertools.product(((64, 256, 1), (33, 20, 24)), ACTIVATIONS):
        inputs, grad_output = layer(shape, dtype)
        found = []
        for name in ("auto", "cpu"):
            with fastgan.use_backend(name):
                found.append(results(f.linear_act, inputs, grad_output, activation))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_profiler_and_autocast_see_direct_calls(compiled: None) -> None:
    x, w, b = torch.randn(6, 3), torch.randn(4, 3, requires_grad=True), torch.randn(4)
    with fastgan.use_backend("auto"):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            f.linear_act(x, w, b, "relu")
        assert "fastgan::mlp" in {event.name for event in profile.events()}
        with torch.autocast("cpu", torch.bfloat16):
            assert f.linear_act(x, w, b, "relu").dtype == torch.bfloat16
        with torch.inference_mode():
            assert f.linear_act(x, w, b, "relu").is_inference()


def test_saved_tensor_hooks_and_changes_in_place_are_seen(compiled: None) -> None:
    x, w = torch.randn(6, 3), torch.randn(1, 3, requires_grad=True)
    with fastgan.use_backend("auto"):
        packed: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
            f.linear_act(x, w, None, "tanh").sum().backward()
        assert len(packed) == 3
        y = f.linear_act(x, w, None, "tanh")
        y.sum().backward(retain_graph=True)
        with torch.no_grad():
            y.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
        y = f.linear_act(x, w, None, "tanh")
        y.sum().backward()
        with pytest.raises(RuntimeError, match="a second time"):
            y.sum().backward()
