"""Whole training steps as CUDA graphs: by a stand-in for CUDA's graphs here, and on a GPU where there is one."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

from bench import step
from bench.configurations import Configuration
from bench.cuda_training import graphed
from bench.peers import contenders
from bench.training import Training


def test_a_graph_of_each_input_set_after_warm_up_steps_that_are_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    class Graph:
        def replay(self) -> None:
            events.append("replay")

    class Stream:
        def wait_stream(self, other: Any) -> None: ...

    @contextlib.contextmanager
    def capturing(graph: Graph):
        events.append("capture")
        yield
        events.append("captured")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", capturing)

    def counted(real: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor]:
        events.append("step")
        return (real,)

    training = graphed(Training(counted, list, reset=lambda: events.append("reset")))
    sets = [(torch.ones(1), torch.ones(1)) for _ in range(2)]
    once = ["capture", "step", "captured", "replay"]
    for i in (0, 0, 1):
        assert training.step(*sets[i])[0] is sets[i][0]
    assert events == ["step"] * 3 + ["reset", *once, "replay", *["step"] * 3, *once]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_graphs_of_whole_steps_agree_with_eager_ones() -> None:
    with torch.device("cuda"):
        configuration = Configuration("tiny", (3, 8, 4), "relu", "tanh", (4, 8, 1), 6)
        reals, noises = step.inputs(configuration)
        labels = ("CUDA graph of torch", "CUDA graph of torch.compile", "torch.compile reduce-overhead")
        trainings = {label: build(configuration) for label, build in contenders(["fastgan"], labels).items()}
        step.check(trainings, configuration, reals[0], noises[0])
