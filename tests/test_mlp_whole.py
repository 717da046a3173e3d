"""A whole MLP on the CPU in one parallel region each way (csrc/cpu/mlp*): any threads, shapes and memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from fastgan import backend, reference
from fastgan.nn import MLP, unfuse


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, params=["tiled"])
def path(compiled: None, request: pytest.FixtureRequest) -> Iterator[None]:
    """Whole networks on every instruction set: without any beyond the baseline, torch's products would be chosen."""
    backend.module.set_layer_path(request.param)
    yield
    backend.module.set_layer_path("automatic")


def values(network: nn.Module, x: Tensor) -> list[Tensor]:
    """The output and every gradient."""
    x = x.detach().requires_grad_()
    y = network(x)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), [x, *network.parameters()])]


@pytest.mark.parametrize("batch", [1, 31, 64, 100, 1000])
@pytest.mark.parametrize("sizes", [[2, 128, 128, 1], [64, 512, 256, 1], [7, 33, 65, 3]], ids=str)
def test_threads_agree(sizes: list[int], batch: int) -> None:
    """The same bits on any number of threads."""
    network, x = MLP(sizes, "leaky_relu", "tanh"), torch.randn(batch, sizes[0])
    results = []
    for number in (1, 2, 3, 4):
        torch.set_num_threads(number)
        results.append(values(network, x))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("path", ["tiled", "library"], indirect=True)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_it_is_as_exact_as_torch(activation: str) -> None:
    torch.set_num_threads(2)
    network, x = MLP([40, 130, 70, 9], activation, bias=activation != "elu"), torch.randn(301, 40)
    ours, plain = values(network, x), values(unfuse(network), x)
    exact = values(unfuse(network).double(), x.double())
    for value, other, true in zip(ours, plain, exact, strict=True):
        assert (value - true).abs().max() <= 2 * (other - true).abs().max() + 1e-6


def test_memory_that_is_not_aligned() -> None:
    network = MLP([5, 90, 33, 2])
    x = torch.randn(77 * 5 + 1)
    aligned = x[1:].clone().reshape(77, 5)
    assert all(map(torch.equal, values(network, x[1:].reshape(77, 5)), values(network, aligned)))


def test_several_of_the_programs_threads_at_once() -> None:
    """Each call has a team of its own, and its scratch memory."""
    torch.set_num_threads(2)
    network, inputs = MLP([64, 256, 128, 1]), [torch.randn(200, 64) for _ in range(4)]
    expected = [values(network, x) for x in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            if not all(map(torch.equal, values(network, inputs[i]), expected[i])):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert not any(worker.is_alive() for worker in workers)
    assert not wrong


@pytest.mark.deep
def test_many_calls_end() -> None:
    """Threads meet several times a call; none is left waiting, however they are scheduled."""
    torch.set_num_threads(4)  # more than there may be cores
    network, x = MLP([2, 64, 64, 1]), torch.randn(256, 2)
    first = values(network, x)
    for _ in range(500):
        last = values(network, x)
    assert all(map(torch.equal, first, last))
