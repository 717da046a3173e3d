"""Hooks and overrides: wherever someone looks at a layer, that layer runs as torch runs it, and only for that long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conformance import assert_close_in_float64, assert_within_bound, in_double
from fused_calls import FusedCalls
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import prune

from fastgan.nn import MLP, fuse, unfuse

pytestmark = pytest.mark.usefixtures("backend")

SIZES = [4, 6, 5, 3]
Event = tuple[Any, ...]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> FusedCalls:
    return FusedCalls(monkeypatch)


def twins() -> tuple[nn.Module, ...]:
    """An MLP, modules 0 to 5, an nn.Sequential of the same values, and that in float64."""
    ours = MLP(SIZES, "tanh", "sigmoid")
    torchs = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3), nn.Sigmoid())
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs, in_double(torchs)


def run(module: nn.Module, input: torch.Tensor) -> list[torch.Tensor]:
    """One training pass in the module's dtype: output, input gradient, parameter gradients."""
    module.zero_grad()
    at = input.to(next(module.parameters()).dtype, copy=True).requires_grad_()
    output = module(at)
    output.square().sum().backward()
    return [output, at.grad, *(p.grad for p in module.parameters())]


def forward_hook(log: list[Event]) -> Callable[..., Any]:
    def hook(module, arguments, output):
        log.append((type(module).__name__, arguments[0].detach(), output.detach()))
        return 2 * output

    return hook


def forward_pre_hook(log: list[Event]) -> Callable[..., Any]:
    def hook(module, arguments):
        log.append((type(module).__name__, arguments[0].detach()))
        return (arguments[0] + 1,)

    return hook


def full_backward_hook(log: list[Event]) -> Callable[..., Any]:
    def hook(module, grad_input, grad_output):
        log.append((type(module).__name__, grad_input[0].detach(), grad_output[0].detach()))
        return (3 * grad_input[0],)

    return hook


def full_backward_pre_hook(log: list[Event]) -> Callable[..., Any]:
    def hook(module, grad_output):
        log.append((type(module).__name__, grad_output[0].detach()))
        return (0.5 * grad_output[0],)

    return hook


HOOKS = {
    "forward": forward_hook,
    "forward_pre": forward_pre_hook,
    "full_backward": full_backward_hook,
    "full_backward_pre": full_backward_pre_hook,
}


def assert_same_events(ours: list[Event], torchs: list[Event], exact: list[Event], count: int) -> None:
    assert len(torchs) == count
    for (our_name, *our_values), (name, *values), (_, *true) in zip(ours, torchs, exact, strict=True):
        assert our_name == name
        assert_within_bound(our_values, values, true)


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize(
    ("index", "expected"),
    [(0, [2]), (1, [1, 2]), (2, [1, 1]), (3, [2, 1]), (4, [2]), (5, [3])],
    ids=str,
)
def test_a_hook_on_a_layer_sees_and_changes_what_it_does_in_torch(kind, index, expected, calls) -> None:
    modules, input = twins(), torch.randn(7, 4)
    logs: tuple[list[Event], ...] = [], [], []
    plain = run(modules[0], input)
    assert calls == [3]
    handles = [
        getattr(module[index], f"register_{kind}_hook")(HOOKS[kind](log))
        for module, log in zip(modules, logs, strict=True)
    ]
    calls.clear()
    results = [run(module, input) for module in modules]
    assert_within_bound(*results)
    assert_same_events(*logs, count=1)
    assert calls == expected  # the layers around it stay fused
    assert not all(torch.allclose(a, b) for a, b in zip(results[0], plain, strict=True))
    for handle in handles:
        handle.remove()
    calls.clear()
    assert all(map(torch.equal, run(modules[0], input), plain))
    assert calls == [3]
    assert len(logs[0]) == 1


@pytest.mark.parametrize("kind", HOOKS)
def test_a_hook_on_the_whole_runs_and_leaves_the_inside_fused(kind, calls) -> None:
    modules, input = twins(), torch.randn(7, 4)
    logs: tuple[list[Event], ...] = [], [], []
    for module, log in zip(modules, logs, strict=True):
        getattr(module, f"register_{kind}_hook")(HOOKS[kind](log))
    assert_within_bound(*(run(module, input) for module in modules))
    assert len(logs[0]) == 1
    for events in zip(*logs, strict=True):
        assert_within_bound(*(list(event[1:]) for event in events))
    assert calls == [3]


@pytest.mark.parametrize(
    ("register", "kind"),
    [
        (torch_module.register_module_forward_hook, "forward"),
        (torch_module.register_module_forward_pre_hook, "forward_pre"),
        (torch_module.register_module_full_backward_hook, "full_backward"),
        (torch_module.register_module_full_backward_pre_hook, "full_backward_pre"),
    ],
    ids=list(HOOKS),
)
def test_global_hooks_see_every_layer(register, kind, calls) -> None:
    modules, input = twins(), torch.randn(7, 4)
    logs: tuple[list[Event], ...] = [], [], []
    results = []
    for module, log in zip(modules, logs, strict=True):
        handle = register(HOOKS[kind](log))
        try:
            results.append(run(module, input))
        finally:
            handle.remove()
    assert_within_bound(*results)
    renamed = [(event[0].replace("MLP", "Sequential"), *event[1:]) for event in logs[0]]
    assert_same_events(renamed, *logs[1:], count=7)  # six modules and the whole
    assert calls == []
    run(modules[0], input)
    assert calls == [3]


@pytest.mark.parametrize("index", [0, 3])
def test_a_hook_that_takes_keywords(index, calls) -> None:
    module, input, seen = MLP(SIZES), torch.randn(7, 4), []
    module[index].register_forward_pre_hook(lambda *a: seen.append(a[1:]), with_kwargs=True)
    module[index].register_forward_hook(lambda *a: seen.append(a[1:3]), with_kwargs=True, always_call=True)
    module(input)
    assert [(len(arguments), keywords) for arguments, keywords in seen] == [(1, {}), (1, {})]


def test_fuse_and_unfuse_keep_hooks(calls) -> None:
    module, log = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).double(), []
    inner = module[2].register_forward_hook(forward_hook(log))
    outer = module.register_forward_hook(forward_hook(log))
    input = torch.randn(3, 4, dtype=torch.float64)
    expected = module(input)
    for step, function in enumerate((fuse, unfuse)):
        assert_close_in_float64(function(module)(input), expected)
        assert len(log) == 2 * (step + 2)
    inner.remove()
    outer.remove()
    assert_close_in_float64(4 * fuse(module)(input), expected)
    assert len(log) == 6
    assert calls == [1, 2]


@pytest.mark.parametrize(("index", "expected"), [(0, [2]), (1, [1, 2]), (2, [1, 1])])
def test_a_forward_set_on_one_instance_is_called(index, expected, calls) -> None:
    modules, input = twins(), torch.randn(7, 4)
    for module in modules:
        original = module[index].forward
        module[index].forward = lambda value, original=original: 1 - original(value)
    assert_within_bound(*(run(module, input) for module in modules))
    assert calls == expected
    del modules[0][index].forward
    calls.clear()
    modules[0](input)
    assert calls == [3]


def test_a_forward_set_on_the_sequential_is_called() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    module.forward = lambda value: value + 1
    input = torch.randn(3, 4)
    assert type(fuse(module)) is nn.Sequential
    assert torch.equal(module(input), input + 1)


def test_a_subclass_that_overrides_call_is_called(calls) -> None:
    class Counting(nn.Linear):
        count = 0

        def __call__(self, *arguments):
            type(self).count += 1
            return super().__call__(*arguments)

    module = fuse(nn.Sequential(Counting(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    module(torch.randn(3, 4))
    assert Counting.count == 1
    assert calls == [1]


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_parameter_replaced_or_pruned_is_used(name, calls) -> None:
    modules, input = twins(), torch.randn(7, 4)
    for module in modules:
        setattr(module[2], name, nn.Parameter(torch.ones_like(getattr(module[2], name))))
    assert_within_bound(*(run(module, input) for module in modules))
    for module in modules:
        prune.l1_unstructured(module[0], name, amount=0.5)
    assert_within_bound(*(run(module, input) for module in modules))
    assert calls == [3, 2]  # pruning computes in a pre-hook
