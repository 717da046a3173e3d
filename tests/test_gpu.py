"""What only a GPU can show: of functions and modules: streams, graphs, no waiting for
the device, sizes over 2^31, one launch a call. test_gpu_step.py is of whole steps.

The functions named `sanitize` call every kernel once at small sizes: what tools/gpu.sh runs under compute-sanitizer.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from conformance import assert_within_bound
from conftest import run_on, unavailable_reason
from launched_kernels import kernels_of
from plain_step import adam, twin
from torch import Tensor, nn

import fastgan
from fastgan import TrainStep
from fastgan import backend as fastgan_backend
from fastgan.functional import (
    binary_cross_entropy_with_logits,
    discriminator_loss,
    generator_loss,
    mlp,
    segmented_activation,
)
from fastgan.nn import MLP

REASON = None if torch.cuda.is_available() else "this test needs a CUDA GPU, and there is none"
REASON = REASON or unavailable_reason("cuda")
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

PATHS = ("narrow", "tiled", "library")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def on_the_gpu() -> Iterator[None]:
    with run_on("cuda"):
        yield
    fastgan_backend.module.set_layer_path("automatic")


def network(dtype: torch.dtype = torch.float32, batch: int = 33, sizes: tuple[int, ...] = (7, 65, 129, 2)):
    """A function of nothing that computes a network's value and gradients on fixed tensors."""
    weights = [torch.randn(o, i, dtype=dtype, requires_grad=True) for i, o in pairwise(sizes)]
    biases = [torch.randn(o, dtype=dtype, requires_grad=True) for o in sizes[1:]]
    x = torch.randn(batch, sizes[0], dtype=dtype)
    names = ["leaky_relu"] * (len(sizes) - 2) + ["tanh"]

    def run() -> list[Tensor]:
        y = mlp(x, weights, biases, names)
        return [y.detach(), *torch.autograd.grad(y, [*weights, *biases], torch.ones_like(y))]

    return run


def losses(dtype: torch.dtype = torch.float32, n: int = 5000) -> Callable[[], list[Tensor]]:
    real, fake = (torch.randn(n, 1, dtype=dtype, requires_grad=True) for _ in range(2))
    target = torch.rand(n, 1, dtype=dtype)

    def run() -> list[Tensor]:
        d, g = discriminator_loss(real, fake), generator_loss(fake)
        b = binary_cross_entropy_with_logits(real, target, pos_weight=target[:1])
        return [d.detach(), g.detach(), b.detach(), *torch.autograd.grad(d + g + b, (real, fake))]

    return run


CALLS = {"losses": losses, "network": network}


@pytest.mark.parametrize("dtype", DTYPES)
def test_sanitize_losses(dtype: torch.dtype) -> None:
    losses(dtype)()
    logits = torch.randn(33, dtype=dtype, requires_grad=True)
    generator_loss(logits, reduction="none").sum().backward()
    binary_cross_entropy_with_logits(logits, torch.rand(33, dtype=dtype), reduction="none").sum().backward()
    torch.cuda.synchronize()


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sanitize_layers(dtype: torch.dtype, path: str, precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    try:
        fastgan_backend.module.set_layer_path(path)
        network(dtype)()
        network(dtype, 3, (1100, 20))()  # k is shared out among blocks
        x, weight = (torch.randn(n, 5, dtype=dtype, requires_grad=True) for n in (3, 4))
        (gradient,) = torch.autograd.grad(mlp(x, [weight], None, ["tanh"]).sum(), x, create_graph=True)
        gradient.sum().backward()  # the second derivative
        torch.cuda.synchronize()
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("dtype", DTYPES)
def test_sanitize_segments(dtype: torch.dtype) -> None:
    widths, kinds = [1, 7, 65, 300], ["tanh", "gumbel_softmax", "softmax", "gumbel_softmax"]
    x = torch.randn(33, sum(widths), dtype=dtype, requires_grad=True)
    y = segmented_activation(x, widths, kinds)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    gradient.square().sum().backward()  # the second derivative
    torch.cuda.synchronize()


@pytest.mark.parametrize("name", CALLS)
def test_graphs(name: str) -> None:
    torch.manual_seed(1)
    call = CALLS[name]()
    torch.manual_seed(1)
    twin = CALLS[name]()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    for _ in range(3):
        graph.replay()
    for a, b in zip(results, twin(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_cudagraph_trees() -> None:
    """torch.compile's own graphs, whose pool of memory may keep nothing of ours."""
    weights, biases = [torch.randn(65, 7), torch.randn(3, 65)], [torch.randn(65), torch.randn(3)]

    def run(x: Tensor) -> Tensor:
        return generator_loss(mlp(x, weights, biases, ["relu", "identity"]))

    def torchs(x: Tensor) -> Tensor:
        w, b = ([t.to(x.dtype) for t in tensors] for tensors in (weights, biases))
        logits = F.linear(F.relu(F.linear(x, w[0], b[0])), w[1], b[1])
        return F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))

    x = torch.randn(9000, 7)
    compiled = torch.compile(run, mode="reduce-overhead", fullgraph=True)
    for _ in range(4):
        assert_within_bound(compiled(x).clone(), torchs(x), torchs(x.double()))


@pytest.mark.parametrize("name", CALLS)
def test_two_streams_at_once(name: str) -> None:
    expected = []
    for seed in range(2):
        torch.manual_seed(seed)
        call = CALLS[name]()
        for _ in range(20):
            result = call()
        expected.append([t.clone() for t in result])
    found: dict[int, list[Tensor]] = {}
    calls = []
    for seed in range(2):
        torch.manual_seed(seed)
        calls.append(CALLS[name]())
    torch.cuda.synchronize()

    def work(seed: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()), torch.device("cuda"):
            for _ in range(20):
                found[seed] = calls[seed]()
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(2):
        for a, b in zip(found[seed], expected[seed], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_streams_that_are_not_torchs_share_no_counters() -> None:
    """One may be destroyed with work under way, and its handle then be that of another."""
    call, runtime, handle = losses(n=100_000), torch.cuda.cudart(), ctypes.c_uint64()
    expected = [t.clone() for t in call()]
    torch.cuda.synchronize()
    assert int(runtime.cudaStreamCreate(ctypes.addressof(handle))) == 0
    try:
        with torch.cuda.stream(torch.cuda.ExternalStream(handle.value)):
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiled:
                found = call()
                torch.cuda.synchronize()
        assert all(map(torch.equal, found, expected))
        names = [event.name.lower() for event in profiled.events()]
        assert any("memset" in name or "fill" in name for name in names), names
    finally:
        runtime.cudaStreamDestroy(handle.value)


@pytest.mark.parametrize("name", CALLS)
def test_nothing_waits_for_the_device(name: str) -> None:
    call = CALLS[name]()
    call()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("n", [64, 1 << 20])
def test_a_loss_is_one_launch(n: int) -> None:
    real, fake = (torch.randn(n, 1, requires_grad=True) for _ in range(2))
    names = kernels_of(lambda: discriminator_loss(real, fake))
    assert len(names) == 1, names
    assert "logits_loss_sum" in names[0]


def test_a_narrow_network_is_one_launch_each_way() -> None:
    fastgan_backend.module.set_layer_path("narrow")
    call = network()
    names = [name for name in kernels_of(call) if "fastgan" in name]
    assert [("forward" in n, "backward" in n) for n in names] == [(True, False), (False, True)], names


@pytest.mark.skipif(REASON is not None or torch.cuda.mem_get_info()[0] < 30e9, reason="needs 30 GB of free GPU memory")
def test_more_than_two_to_the_31_elements() -> None:
    n = (1 << 31) + 77
    logits = torch.zeros(n, dtype=torch.bfloat16)
    logits[-1] = 100.0
    logits.requires_grad_()
    loss = generator_loss(logits, kind="minimax", reduction="sum")
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[0].item() == -0.5
    assert gradient[-1].item() == -1.0
    exact = -((n - 1) * 0.6931471805599453 + 100)
    assert abs(loss.item() - exact) <= 2**-8 * abs(exact)  # a rounding to bfloat16


@pytest.mark.parametrize("path", ["narrow", "tiled"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sanitize_whole_step(path: str, precision: str) -> None:
    fastgan_backend.module.set_layer_path(path)
    generator = nn.Sequential(nn.Linear(5, 33), nn.BatchNorm1d(33), nn.ReLU(), nn.Dropout(0.3), nn.Linear(33, 6))
    step = twin(TrainStep, generator, MLP([8, 33, 1]), adam, num_classes=2, ema_decay=0.9, precision=precision)
    real, labels = torch.randn(9, 6), torch.arange(9) % 2
    for _ in range(3):
        assert all(value.isfinite() for value in step.step(real, labels))


def test_memory_is_given_back() -> None:
    call = network()
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(5):
        call()
    assert torch.cuda.memory_allocated() == before


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_second_gpu() -> None:
    with torch.device("cuda:1"):
        results = [*losses()(), *network()()]
    assert {t.device.index for t in results} == {1}
    assert torch.cuda.current_device() == 0


def test_info_names_the_gpu() -> None:
    info = fastgan.info()
    assert info["backends"]["cuda"] == "available"
    assert info["build"]["cuda"]
