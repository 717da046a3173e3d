"""Ways to train on a GPU: whole steps of PyTorch as CUDA graphs, and apex's Adam."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor

from . import compiled
from .configurations import Configuration
from .training import BETA1, BETA2, EPS, LEARNING_RATE, Build, Training, adam, eager


def graph_of_eager(configuration: Configuration) -> Training:
    """A CUDA graph of the eager step; capturable, Adam keeps its step count on the GPU."""
    return graphed(eager(configuration, adam(fused=True, capturable=True), one_batch=True))


def graph_of_compiled(configuration: Configuration) -> Training:
    """A CUDA graph of the compiled step."""
    return graphed(compiled.whole(configuration))


def apex_unavailable_reason() -> str | None:
    """Why apex cannot be measured, in a sentence."""
    if importlib.util.find_spec("apex") is None or importlib.util.find_spec("amp_C") is None:
        return "apex with its CUDA extensions is not installed"
    return None


def apex(configuration: Configuration) -> Training:
    """The eager step with apex's FusedAdam."""
    from apex.optimizers import FusedAdam

    def make_optimizer(parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        return FusedAdam(parameters, lr=LEARNING_RATE, betas=(BETA1, BETA2), eps=EPS, adam_w_mode=False)

    return eager(configuration, make_optimizer)


def graphed(training: Training) -> Training:
    """Each step a replay of a CUDA graph of its own input tensors: rotating inputs cost no copies.

    Steps warm up before each capture; those before the first are undone.
    """
    graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Sequence[Tensor]]] = {}

    def capture(real: Tensor, noise: Tensor) -> tuple[torch.cuda.CUDAGraph, Sequence[Tensor]]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                training.step(real, noise)
            if not graphs:
                training.reset()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            losses = training.step(real, noise)
        return graph, losses

    def step(real: Tensor, noise: Tensor) -> Sequence[Tensor]:
        key = (real.data_ptr(), noise.data_ptr())
        if key not in graphs:
            graphs[key] = capture(real, noise)
        graph, losses = graphs[key]
        graph.replay()
        return losses

    return Training(step, training.parameters)


BUILDS: dict[str, Build] = {
    "torch.compile reduce-overhead": compiled.reduce_overhead,
    "CUDA graph of torch": graph_of_eager,
    "CUDA graph of torch.compile": graph_of_compiled,
    "apex": apex,
}
