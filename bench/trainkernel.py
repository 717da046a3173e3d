"""A training step of plain regression against TrainKernel's one kernel, where that is installed.

TrainKernel has ReLU, squared losses and SGD: neither the GAN loss nor Adam, so that it gets the step it was made for.
Every contender is a CUDA graph of whole steps.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from itertools import cycle, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.nn import MLP, unfuse

from .agreement import KINKS, assert_agree
from .cuda_training import graphed
from .pairs import INPUT_SETS
from .timing import Case
from .training import Training, restore

LEARNING_RATE = 1e-2
BATCH = 256
SIZES = ((16, 32, 1), (64, 128, 128, 1), (64, 512, 256, 1))
Weights = tuple[tuple[Tensor, Tensor], ...]


def cases() -> Iterator[Case]:
    """Forward, loss, backward and SGD of MLPs with ReLU at batch 256; nothing where TrainKernel is missing."""
    if importlib.util.find_spec("trainkernel") is None:
        print("note: without TrainKernel: trainkernel is not installed")
        return
    for sizes in SIZES:
        yield _case(sizes)


def step(weights: Weights, x: Tensor, target: Tensor) -> tuple[Tensor, Weights, Weights]:
    """The step as TrainKernel wants it: loss, gradients and moved weights, of weights (in, out)."""

    def loss(weights: Weights) -> Tensor:
        value = x
        for i, (weight, bias) in enumerate(weights):
            value = value @ weight + bias
            value = torch.relu(value) if i < len(weights) - 1 else value
        return ((value - target) ** 2).mean()

    gradients, value = torch.func.grad_and_value(loss)(weights)
    moved = tuple(
        (w - LEARNING_RATE * dw, b - LEARNING_RATE * db) for (w, b), (dw, db) in zip(weights, gradients, strict=True)
    )
    return value, gradients, moved


def _case(sizes: tuple[int, ...]) -> Case:
    sets = [(torch.randn(BATCH, sizes[0]), torch.randn(BATCH, sizes[-1])) for _ in range(INPUT_SETS)]
    plain = unfuse(_network(sizes))
    trainings = {
        "fastgan": graphed(_training(_network(sizes))),
        "trainkernel": _trainkernel(_network(sizes), sets),
        "torch": graphed(_training(plain)),
    }

    def check() -> None:
        results = []
        for training in trainings.values():
            for _ in range(3):
                training.step(*sets[0])
            results.append([p.detach().clone() for p in training.parameters()])
        for result in results[:-1]:
            assert_agree(result, results[-1], at_least=KINKS)

    contenders = {}
    for label, training in trainings.items():
        turns = cycle(sets)
        contenders[label] = lambda step=training.step, turns=turns: step(*next(turns))
    products = sum(a * b for a, b in pairwise(sizes))
    flops = 2.0 * BATCH * (3 * products - sizes[0] * sizes[1])
    name = f"trainkernel {'-'.join(map(str, sizes))} batch {BATCH} float32 SGD step"
    return Case(name, contenders, check, flops=flops, capturable=False)


def _network(sizes: tuple[int, ...]) -> MLP:
    torch.manual_seed(0)
    return MLP(sizes, "relu")


def _training(module: nn.Module) -> Training:
    parameters = list(module.parameters())
    start = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE, fused=True)

    def run(x: Tensor, target: Tensor) -> tuple[Tensor]:
        loss = F.mse_loss(module(x), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return (loss.detach(),)

    return Training(run, lambda: parameters, reset=lambda: restore(parameters, start, []))


def _trainkernel(module: nn.Module, sets: list[tuple[Tensor, Tensor]]) -> Training:
    import trainkernel

    linears = [layer for layer in module if isinstance(layer, nn.Linear)]
    weights = tuple(
        (layer.weight.detach().t().clone(memory_format=torch.contiguous_format), layer.bias.detach().clone())
        for layer in linears
    )
    compiled = trainkernel.compile_training(step, (weights, *sets[0]))
    graphs = {x.data_ptr(): compiled.capture(weights, x, target) for x, target in sets}
    return Training(
        lambda x, target: graphs[x.data_ptr()].replay(),
        lambda: [tensor for weight, bias in weights for tensor in (weight.t(), bias)],
    )
