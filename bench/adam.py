"""The update of all of a discriminator's parameters by `adam_`, against PyTorch's fused Adam."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from fastgan import backend

from .agreement import assert_agree
from .configurations import CONFIGURATIONS
from .timing import Case

OPTIONS = {"lr": 2e-4, "beta1": 0.5, "beta2": 0.999, "weight_decay": 0.0, "eps": 1e-8}


def cases() -> Iterator[Case]:
    """One update of the four discriminators, the learning rate on the host. Only the compiled backends have the op."""
    if not backend.is_compiled(torch.empty(1)):
        return
    for configuration in CONFIGURATIONS:
        shapes = [shape for i, o in pairwise(configuration.discriminator) for shape in ((o, i), (o,))]
        yield update_case(f"adam {configuration.name} D float32 update", shapes)


def update_case(name: str, shapes: list[tuple[int, ...]]) -> Case:
    """One update of parameters of these shapes."""

    def state() -> list[list[Tensor]]:
        generator = torch.Generator(torch.get_default_device()).manual_seed(0)
        params, grads = ([torch.randn(s, generator=generator) for s in shapes] for _ in range(2))
        moments = [[torch.zeros(s) for s in shapes] for _ in range(2)]
        return [params, grads, *moments, [], [torch.zeros(()) for _ in shapes]]

    def ours(tensors: list[list[Tensor]]) -> None:
        backend.ops.adam_(*tensors, None, *OPTIONS.values(), False, False, False)

    def torchs(tensors: list[list[Tensor]]) -> None:
        torch._foreach_add_(tensors[5], 1)  # as torch.optim.Adam does before its fused update
        torch._fused_adam_(*tensors, **OPTIONS, amsgrad=False, maximize=False)

    def check() -> None:
        results = [state(), state()]
        for update, tensors in zip((ours, torchs), results, strict=True):
            update(tensors)
        assert_agree(results[0][0], results[1][0])

    states = [state(), state()]
    contenders = {"fastgan": lambda: ours(states[0]), "torch": lambda: torchs(states[1])}
    elements = sum(torch.Size(s).numel() for s in shapes)
    # parameter, gradient and both moments are read, all but the gradient written
    return Case(name, contenders, check, bytes=7 * 4.0 * elements, capturable=False)
