"""The state of the process: backends, modes of torch, functions and classes patched for everyone, global hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conformance import assert_close_in_float64
from conftest import run_on_or_skip
from surgery import BATCH, DATA, outcome, run, trainer
from torch import Tensor, nn

import fastgan
from fastgan import layers
from fastgan.nn import MLP, fuse

NATIVE = "the whole step as one native call"


@pytest.fixture(params=("auto", "cpu", "reference", "simt"))
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    with run_on_or_skip(request.param) as name:
        yield name


@pytest.fixture(params=("auto", "cpu", "reference"))
def forward_place(request: pytest.FixtureRequest) -> Iterator[str]:
    with run_on_or_skip(request.param) as name:
        yield name


def _twice(original: Callable[..., Any]) -> Callable[..., Any]:
    def patched(*arguments: Any, **options: Any) -> Any:
        return 2 * original(*arguments, **options)

    return patched


def _backwards(self: Any) -> Any:
    return iter(list(self._modules.values())[:-1])


def _own(self: Any, name: str) -> Any:
    value = nn.Module.__getattr__(self, name)
    return value * 2 if name == "weight" else value


PATCHES: dict[str, tuple[Any, str, Callable[[], Any]]] = {
    "Linear.forward": (nn.Linear, "forward", lambda: _twice(nn.Linear.forward)),
    "Linear.__call__": (nn.Linear, "__call__", lambda: _twice(nn.Module.__call__)),
    "Linear._call_impl": (nn.Linear, "_call_impl", lambda: _twice(nn.Module._call_impl)),
    "Linear.__getattr__": (nn.Linear, "__getattr__", lambda: _own),
    "Linear.weight": (nn.Linear, "weight", lambda: property(lambda self: 2 * self._parameters["weight"])),
    "LeakyReLU.forward": (nn.LeakyReLU, "forward", lambda: _twice(nn.LeakyReLU.forward)),
    "ReLU.forward": (nn.ReLU, "forward", lambda: _twice(nn.ReLU.forward)),
    "Tanh.forward": (nn.Tanh, "forward", lambda: _twice(nn.Tanh.forward)),
    "BatchNorm1d.forward": (nn.BatchNorm1d, "forward", lambda: _twice(nn.BatchNorm1d.forward)),
    "Sequential.forward": (nn.Sequential, "forward", lambda: _twice(nn.Sequential.forward)),
    "Sequential.__iter__": (nn.Sequential, "__iter__", lambda: _backwards),
    "Module.__call__": (nn.Module, "__call__", lambda: _twice(nn.Module.__call__)),
    "F.linear": (F, "linear", lambda: _twice(F.linear)),
    "F.leaky_relu": (F, "leaky_relu", lambda: _twice(F.leaky_relu)),
    "F.batch_norm": (F, "batch_norm", lambda: _twice(F.batch_norm)),
    "torch.tanh": (torch, "tanh", lambda: _twice(torch.tanh)),
}


@contextlib.contextmanager
def patched(name: str) -> Iterator[None]:
    holder, attribute, make = PATCHES[name]
    own = attribute in vars(holder)
    before = vars(holder).get(attribute)
    setattr(holder, attribute, make())
    try:
        yield
    finally:
        setattr(holder, attribute, before) if own else delattr(holder, attribute)


@pytest.mark.parametrize("name", PATCHES)
def test_a_patched_forward_is_what_runs(forward_place: str, name: str) -> None:
    """Fused before or after the patch, of a plain Sequential, a subclass of it or an MLP."""

    class Net(nn.Sequential):
        pass

    x = torch.randn(3, 4, dtype=torch.float64)
    for kind in (nn.Sequential, Net):
        plain = kind(nn.Linear(4, 4), nn.LeakyReLU(0.1), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU())
        plain.double()
        fused = fuse(kind(*plain._modules.values()))
        fused(x)
        mlp = MLP([4, 4, 4], "tanh", dtype=torch.float64)
        with patched(name):
            late = fuse(kind(*plain._modules.values()))
            expected = plain(x)
            for module in (fused, late):
                assert_close_in_float64(module(x), expected)
            assert_close_in_float64(mlp(x), nn.Sequential(*mlp._modules.values())(x))
        assert_close_in_float64(fused(x), plain(x))


def test_a_class_patched_beneath_its_fused_twin(forward_place: str) -> None:
    class Net(nn.Sequential):
        pass

    x, net = torch.randn(3, 4, dtype=torch.float64), fuse(Net(nn.Linear(4, 4), nn.ReLU())).double()
    Net.forward = lambda self, input: 2 * nn.Sequential.forward(self, input)
    assert_close_in_float64(net(x), 2 * nn.Sequential(*net)(x))


@pytest.mark.deep_on("reference")
@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_between_two_steps(place: str, name: str) -> None:
    seen = {}
    for way in ("engine", "composed", "plain"):
        with contextlib.ExitStack() as stack:
            seen[way] = outcome(way, lambda step, stack=stack: stack.enter_context(patched(name)), False)
    for way in ("composed", "plain"):
        assert seen["engine"][1] == seen[way][1]
        for a, b in zip(seen["engine"][0], seen[way][0], strict=True):
            assert_close_in_float64(a, b, 1e-9)


def _doubling_mode() -> Any:
    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, kinds: Any, arguments: Any = (), options: Any = None) -> Any:
            result = function(*arguments, **(options or {}))
            return result * 2 if function is F.linear else result

    return Mode()


def _dispatch_mode() -> Any:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, kinds: Any, arguments: Any = (), options: Any = None) -> Any:
            result = function(*arguments, **(options or {}))
            return result * 2 if function is torch.ops.aten.tanh.default else result

    return Mode()


MODES: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "anomaly": torch.autograd.detect_anomaly,
    "saved tensors": lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t * 2, lambda t: t),
    "function mode": _doubling_mode,
    "dispatch mode": _dispatch_mode,
    "device": lambda: torch.device("cpu"),
    "backend": lambda: fastgan.use_backend("reference"),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("mode", MODES)
def test_modes(place: str, mode: str) -> None:
    seen = []
    for way in ("engine", "composed"):
        step = trainer(way)
        run(step, 1, 5)
        error = ""
        try:
            with MODES[mode]():
                run(step, 2, 6)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        tensors = [t for m in (step.generator, step.discriminator, step.ema) for t in m.state_dict().values()]
        seen.append(([t.detach().clone() for t in tensors], error))
    assert seen[0][1] == seen[1][1]
    for a, b in zip(seen[0][0], seen[1][0], strict=True):
        assert_close_in_float64(a, b, 1e-9)


def test_the_backend_may_change_after_the_plan(place: str) -> None:
    step = trainer("engine")
    run(step, 1, 5)
    with fastgan.use_backend("reference"):
        assert "the backend is the reference" in step.plan
    if place in ("auto", "cpu"):
        assert step.plan.startswith(NATIVE)


def test_a_device_as_the_default_leaves_the_step_one_call(place: str) -> None:
    if place == "reference":
        pytest.skip("the reference has no engine")
    step = trainer("engine")
    step._composed_step = None
    with torch.device("cpu"):
        step.step(torch.randn(BATCH, DATA, dtype=torch.float64))


@pytest.mark.parametrize("register", ["register_optimizer_step_pre_hook", "register_optimizer_step_post_hook"])
def test_hooks_of_all_optimizers(place: str, register: str) -> None:
    from torch.optim import optimizer

    step, calls = trainer("engine"), []
    run(step, 1, 5)
    handle = getattr(optimizer, register)(lambda *given: calls.append(1))
    try:
        run(step, 1, 5)
    finally:
        handle.remove()
    assert len(calls) == 2


def _layer(change: Callable[[nn.Module], Any], make: Callable[[], nn.Module]) -> nn.Module:
    module = make()
    change(module)
    return module


def _set(name: str, value: Any) -> Callable[[nn.Module], Any]:
    return lambda module: module.__dict__.__setitem__(name, value)


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "nothing": lambda module: None,
    "note": _set("note", 1),
    "forward": _set("forward", lambda x: x * 2),
    "_call_impl": _set("_call_impl", lambda x: x * 2),
    "_compiled_call_impl": _set("_compiled_call_impl", lambda x: x * 2),
    "_slow_forward": _set("_slow_forward", None),
    "parameter": lambda module: module.register_parameter("extra", nn.Parameter(torch.ones(1))),
    "buffer": lambda module: module.register_buffer("extra", torch.ones(1)),
    "module": lambda module: module.add_module("extra", nn.ReLU()),
    "forward hook": lambda module: module.register_forward_hook(lambda m, i, o: o * 2),
    "forward pre hook": lambda module: module.register_forward_pre_hook(lambda m, i: i[0] * 2),
    "backward hook": lambda module: module.register_full_backward_hook(lambda m, i, o: None),
    "state hook": lambda module: module.register_state_dict_pre_hook(lambda *given: None),
    "class": lambda module: setattr(module, "__class__", type("Own", (type(module),), {})),
    "class with a forward": lambda module: setattr(
        module, "__class__", type("Own", (type(module),), {"forward": lambda self, x: x * 2})
    ),
}


@pytest.mark.parametrize("place_of", ["first", "activation"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_layer_that_is_somebody_elses_runs_as_it_is(forward_place: str, change: str, place_of: str) -> None:
    """The one list, as Python reads it and as C++ does."""
    net = fuse(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    for early in (False, True):
        if early:
            net(x)
        layer = net[0 if place_of == "first" else 1]
        if not early:
            CHANGES[change](layer)
        expected: Tensor = x
        for module in net._modules.values():
            expected = module(expected)
        assert_close_in_float64(net(x), expected)
    reason = layers.refusal(layer)
    takes = change in ("nothing", "note", "state hook")
    assert (reason is None) == takes, reason
    from fastgan.nn import _reader

    if forward_place == "auto" and (takes or change != "class"):
        assert (_reader.run(net, x) is not None) == takes
