"""linear_act against torch.nn.functional.linear and an activation."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from fastgan.functional import linear_act
from fastgan.reference import ACTIVATIONS

from .pairs import pair
from .timing import Case

# (batch, in, out, activation)
LAYERS = [
    (64, 256, 1, "identity"),
    (256, 2, 128, "relu"),
    (256, 128, 128, "relu"),
    (128, 256, 512, "leaky_relu"),
    (128, 512, 64, "tanh"),
    (128, 512, 256, "gelu"),
    (128, 1024, 784, "tanh"),
    (1024, 1024, 1024, "leaky_relu"),
    (4096, 1024, 1024, "leaky_relu"),
]


def cases() -> Iterator[Case]:
    """Layers like those of the four configurations, and larger, in float32; one in bfloat16."""
    for dtype, layers in ((torch.float32, LAYERS), (torch.bfloat16, LAYERS[-2:-1])):
        for batch, width_in, width_out, activation in layers:
            flops = 2.0 * batch * width_in * width_out
            yield from pair(
                f"linear_act {activation} {batch}x{width_in}x{width_out}",
                functools.partial(linear_act, activation=activation, negative_slope=0.2),
                lambda x, w, b, a=activation: ACTIVATIONS[a].function(F.linear(x, w, b), 0.2),
                [(batch, width_in), (width_out, width_in), (width_out,)],
                dtype=dtype,
                scales=[1.0, width_in**-0.5, 1.0],  # a larger weight would saturate tanh: gradients of zero
                flops=(flops, 3 * flops),
            )
