"""The first use of a family of kernels (fastgan/gate.py): wherever it happens, one check, which nobody sees."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from planted import CPU, new_process, nothing_verified, plant
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastgan
from fastgan import TrainStep, backend, device_cache, gate
from fastgan import functional as f

__all__ = ["new_process"]
pytestmark = pytest.mark.usefixtures("compiled", "new_process")
ROOT = Path(__file__).resolve().parent.parent

Use = tuple[str, torch.device, torch.dtype]


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch, new_process: Path) -> list[Use]:
    """The checks that are made, by what they are of."""
    made: list[Use] = []
    check = gate.check

    def note(*use: Any) -> Any:
        made.append(use)
        return check(*use)

    monkeypatch.setattr(gate, "check", note)
    return made


def layer() -> tuple[Tensor, Tensor]:
    """An input and a weight of small integers: their products have no rounding."""
    x, w = (torch.randint(-3, 4, (n, 5), dtype=torch.float32, device="cpu") for n in (3, 2))
    return x, w


class Functions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        return function(*args, **(kwargs or {}))


class Dispatches(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "nothing": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "a default device": lambda: torch.device("meta"),
    "a default dtype": default_dtype,
    "a mode of functions": Functions,
    "a mode of dispatch": Dispatches,
    "detect_anomaly": lambda: torch.autograd.detect_anomaly(check_nan=True),
    "hooks of saved tensors": lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: pytest.fail("packed"), id),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_the_check_neither_sees_nor_changes_where_it_is_made(surroundings: str, checks: list[Use]) -> None:
    x, w = layer()
    before = torch.get_rng_state()
    with warnings.catch_warnings(), SURROUNDINGS[surroundings]() as mode:
        warnings.simplefilter("error", RuntimeWarning)
        f.linear_act(x, w)
        first = getattr(mode, "seen", 0)
        f.linear_act(x, w)
        # As much as of the second call, and that the tensor was asked its device and its dtype: nothing of the check.
        assert first <= getattr(mode, "seen", 0) - first + 4
    assert torch.equal(torch.get_rng_state(), before)
    assert checks == [("layers", CPU, torch.float32)]
    assert gate.known[gate.Key(backend.module, *checks[0])]
    assert [t.name for t in threading.enumerate() if t.name == "fastgan verification"] == []


def test_steps_draw_what_they_would_draw(checks: list[Use]) -> None:
    def train() -> list[Tensor]:
        torch.manual_seed(3)
        networks = [
            nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)),
            nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 1)),
        ]
        step = TrainStep(*networks, *(torch.optim.Adam(n.parameters()) for n in networks))
        assert step.plan.startswith("the whole step as one native call")
        step.step(torch.randn(5, 2))
        return [p for n in networks for p in n.parameters()]

    first, second = train(), train()
    assert all(map(torch.equal, first, second))
    assert [family for family, *_ in checks] == ["step", "step_dropout"]


def test_inside_a_backward(checks: list[Use]) -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.square()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return f.linear_act(*layer()).sum() * grad

    x = torch.ones(1, requires_grad=True)
    Square.apply(x).backward()
    assert len(checks) == 1


def looking(seen: list[str]) -> Callable[..., Any]:
    """A backend of torch.compile that runs the graph as it is; the list has what it calls."""

    def compiled(graph: Any, inputs: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    return compiled


def test_inside_a_transform_torch_compile_takes_plain_pytorch(checks: list[Use]) -> None:
    x, w = layer()
    seen: list[str] = []

    def function(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: f.linear_act(x, w).square().sum())(x)

    value = torch.compile(function, backend=looking(seen), fullgraph=True)(x)
    assert torch.equal(value, 2 * x @ w.t() @ w)
    assert not any("fastgan" in target for target in seen)
    assert checks == []


def test_torch_compile_traces_the_answer_alone(checks: list[Use]) -> None:
    x, w = layer()

    def function(x: Tensor) -> Tensor:
        return f.linear_act(x, w, None, "tanh").sum() + f.generator_loss(x) + f.discriminator_loss(x, x)

    seen: list[str] = []
    compiled = torch.compile(function, backend=looking(seen), fullgraph=True)
    value = compiled(x)
    assert [target for target in seen if "fastgan" in target] == [
        "fastgan.mlp",
        "fastgan.logits_loss",
        "fastgan.discriminator_loss",
    ]
    assert sorted(family for family, *_ in checks) == ["gan_losses", "layers"]
    assert torch.equal(value, function(x))
    compiled(x)
    assert len(checks) == 2


def test_torch_compile_takes_the_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = layer()
    seen: list[str] = []
    calls = plant(monkeypatch, "a column of the output")
    torch._dynamo.reset()
    with pytest.warns(RuntimeWarning, match="layers in float32"):
        value = torch.compile(lambda x: f.linear_act(x, w), backend=looking(seen), fullgraph=True)(x)
    assert torch.equal(value, x @ w.t())
    assert calls == []
    assert not any("fastgan" in target for target in seen)


def test_direct_calls_wait_for_the_check(checks: list[Use]) -> None:
    direct = backend.module
    x = torch.randn(4, 1)
    network = fastgan.nn.fuse(nn.Sequential(nn.Linear(1, 2), nn.ReLU()))
    tries = {
        "gan_losses": [
            lambda: direct.discriminator_loss(x, x, "bce", 1.0, 0.0, "mean"),
            lambda: direct.generator_loss(x, None, "non_saturating", 1.0, "mean"),
        ],
        "layers": [
            lambda: fastgan.nn._reader.run(network, x),
            lambda: direct.linear_act(x, torch.ones(2, 1), None, "relu", 0.0),
            lambda: direct.mlp(x, [torch.ones(2, 1)], None, ["relu"], None),
        ],
    }
    with fastgan.use_backend("auto"):
        assert [call() for calls in tries.values() for call in calls] == [None] * 5
        f.discriminator_loss(x, x)
        network(x)
        assert len(checks) == 2
        assert None not in [call() for calls in tries.values() for call in calls]
        for family, calls in tries.items():
            gate.settle(gate.Key(backend.module, family, CPU, torch.float32), {"passed": False, "fault": "wrong"})
            assert [call() for call in calls] == [None] * len(calls)
        node = type(f.generator_loss(x.clone().requires_grad_()).grad_fn).__name__
        assert node == "BinaryCrossEntropyWithLogitsBackward0"


def test_an_unknown_family_or_a_wrong_dtype_is_no_crash() -> None:
    backend.module.set_verified("nothing", "cpu", torch.float32, True)
    backend.module.set_verified("layers", "cuda:200", torch.float32, True)
    with pytest.raises(RuntimeError, match=r"must be a torch\.dtype"):
        backend.module.set_verified("layers", "cpu", "float32", True)


def test_threads_at_once_wait_for_one_check(checks: list[Use]) -> None:
    values: list[Tensor] = []
    threads = [threading.Thread(target=lambda: values.append(f.linear_act(*layer()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(values), len(checks)) == (4, 1)


def test_a_forked_process_has_a_lock_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "check", lambda *use: {"passed": True, "fault": ""})
    held, end = threading.Event(), threading.Event()

    def hold() -> None:
        with gate._lock:
            held.set()
            end.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a process with threads
        child = os.fork()
    if child == 0:
        os._exit(7 if gate._first_use("layers", CPU, torch.float32) else 8)
    ended, status = 0, 0
    until = time.monotonic() + 60
    while not ended and time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    end.set()
    thread.join()
    if not ended:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert ended == child
    assert os.waitstatus_to_exitcode(status) == 7


def test_a_kernel_that_raises_is_at_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "a column of the output")
    monkeypatch.setattr(backend.ops, "mlp", lambda *arguments: [][0])
    x, w = layer()
    with pytest.warns(RuntimeWarning, match="relu.*33x7-33-9-1, float32: IndexError: list index out of range"):
        assert torch.equal(f.linear_act(x, w), x @ w.t())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_without_memory_nothing_is_found_out(
    error: Exception, checks: list[Use], new_process: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w = layer()
    plant(monkeypatch, "a column of the output")
    mlp = backend.ops.mlp

    def none_left(*arguments: Any) -> Any:
        if gate._is_checking():
            raise error
        return mlp(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(backend.ops, "mlp", none_left)
        for _ in range(2):
            f.linear_act(x, w)  # it serves, and the next call tries again
        with pytest.raises(RuntimeError, match="cpu cannot be verified"):
            fastgan.verify("cpu")
    assert len(checks) == 2
    assert device_cache.load("verification", CPU).get("layers float32") is None
    with pytest.warns(RuntimeWarning):
        f.linear_act(x, w)


def test_what_pytorch_itself_cannot_do_is_no_fault(
    checks: list[Use], new_process: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> Any:
        raise RuntimeError("no deterministic implementation")

    monkeypatch.setattr("fastgan.verification_cases.reference", refuse)
    for _ in range(2):
        assert gate._first_use("layers", CPU, torch.float32)
    assert len(checks) == 1
    assert not new_process.exists()


def test_a_check_that_does_not_end(new_process: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()
    monkeypatch.setattr(gate, "check", lambda *use: end.wait())
    monkeypatch.setattr(gate, "_LONGEST", 0.05)
    with pytest.warns(RuntimeWarning, match="did not end in 0 seconds"):
        assert not gate._first_use("layers", CPU, torch.float32)
    end.set()
    assert not new_process.exists()


def test_a_warning_that_is_an_error_leaves_the_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "a column of the output")
    x, w = layer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="switched off"):
            f.linear_act(x, w)
        assert torch.equal(f.linear_act(x, w), x @ w.t())


@pytest.mark.parametrize("entry", [None, 1, {}, {"passed": 1, "fault": ""}, {"passed": False}])
def test_an_entry_of_another_kind_counts_as_none(entry: Any, checks: list[Use]) -> None:
    device_cache.merge("verification", CPU, {"layers float32": entry})
    f.linear_act(*layer())
    assert len(checks) == 1
    assert device_cache.load("verification", CPU)["layers float32"] == {"passed": True, "fault": ""}
    with nothing_verified():
        f.linear_act(*layer())
    assert len(checks) == 1


@pytest.mark.parametrize("when", ["capturing", "in a backward"])
def test_on_a_device_where_nothing_may_be_run_now(
    when: str, checks: list[Use], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: when == "capturing")
    monkeypatch.setattr(torch._C, "_current_graph_task_id", lambda: 0 if when == "in a backward" else -1)
    assert not gate._first_use("layers", device, torch.float32)
    assert gate.step_refusal(device, torch.float32, False) == "its kernels are not verified yet"
    assert (checks, gate.known) == ([], {})
    gate.settle(gate.Key(backend.module, "step", device, torch.float32), {"passed": True, "fault": ""})
    assert gate.step_refusal(device, torch.float32, False) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA runs here")
def test_a_fake_tensor_of_a_device_that_is_not_here_is_not_checked(checks: list[Use]) -> None:
    assert gate._first_use("layers", torch.device("cuda", 0), torch.float32)
    assert (checks, gate.known) == ([], {})


def test_importing_fastgan_imports_no_check() -> None:
    code = "import sys, fastgan; print([n for n in sys.modules if 'verification' in n or n == 'torch._dynamo'])"
    done = warm.run(["-c", code], ROOT, os.environ)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
