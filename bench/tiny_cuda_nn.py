"""MLPs without biases in float16 against tiny-cuda-nn's fully fused one, where that is installed.

It has no biases, no float32 and no GAN loss, so that layers are compared and not the training step.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from itertools import cycle, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.nn import MLP, unfuse

from .agreement import KINKS, assert_agree
from .pairs import INPUT_SETS
from .timing import Case

WIDTHS, BATCHES = (64, 128), (256, 1024, 4096)  # its widths are at most 128, its batches multiples of 256
HIDDEN_LAYERS, INPUTS = 2, 64
PADDED_OUTPUTS = 16  # its last layer has a multiple of 16 rows, of which the first is the output here
# Of gradients that each side sums in its own order and half precision.
TOLERANCE = 2e-2


def cases() -> Iterator[Case]:
    """Forward with backward of 64-width-width-1, ReLU; nothing where tiny-cuda-nn is missing."""
    if importlib.util.find_spec("tinycudann") is None:
        print("note: without tiny-cuda-nn: tinycudann is not installed")
        return
    for width in WIDTHS:
        for batch in BATCHES:
            yield _case(width, batch)


def _case(width: int, batch: int) -> Case:
    import tinycudann

    sizes = (INPUTS, *[width] * HIDDEN_LAYERS, 1)
    torch.manual_seed(0)
    fused, plain = (MLP(sizes, "relu", bias=False, dtype=torch.float16) for _ in range(2))
    plain.load_state_dict(fused.state_dict())
    plain = unfuse(plain)
    options = {"otype": "FullyFusedMLP", "activation": "ReLU", "output_activation": "None"}
    theirs = tinycudann.Network(INPUTS, 1, {**options, "n_neurons": width, "n_hidden_layers": HIDDEN_LAYERS})
    with torch.no_grad():  # weights (out, in) one after the other, the last padded
        weights = [p.float() for p in fused.parameters()]
        weights[-1] = F.pad(weights[-1], (0, 0, 0, PADDED_OUTPUTS - 1))
        theirs.params.copy_(torch.cat([w.flatten() for w in weights]))
    inputs = [torch.randn(batch, INPUTS, dtype=torch.float16) for _ in range(INPUT_SETS)]
    grad_output = torch.randn(batch, 1, dtype=torch.float16)

    def gradients(module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(module(x), list(module.parameters()), grad_output)

    def check() -> None:
        expected = torch.cat([g.float().flatten() for g in gradients(plain, inputs[0])])
        ours = torch.cat([g.float().flatten() for g in gradients(fused, inputs[0])])
        (flat,) = gradients(theirs, inputs[0])
        assert_agree([ours, flat.float()[: len(expected)]], [expected] * 2, at_least=max(KINKS, TOLERANCE))

    modules = {"fastgan": fused, "tiny-cuda-nn": theirs, "torch": plain}
    contenders: dict[str, Callable[[], object]] = {}
    for label, module in modules.items():
        turns = cycle(inputs)
        contenders[label] = lambda module=module, turns=turns: gradients(module, next(turns))
    products = sum(a * b for a, b in pairwise(sizes))
    flops = 2.0 * batch * (3 * products - sizes[0] * sizes[1])
    name = f"tiny-cuda-nn 64-{width}-{width}-1 batch {batch} float16 forward+backward"
    return Case(name, contenders, check, flops=flops, dtype=torch.bfloat16)  # of the same rate as float16
