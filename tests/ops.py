"""Every public op as a function of tensors beside its plain PyTorch twin, for tests that treat all ops alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan import functional


class Op(NamedTuple):
    """One op: the fused function, the same in plain PyTorch, and the shapes of the tensors that both take."""

    ours: Callable[..., Tensor]
    torchs: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    batches: int  # how many of the tensors, the first ones, have samples as their first dimension

    def inputs(self, dtype: torch.dtype = torch.float64, times: int = 1) -> list[Tensor]:
        """Random tensors with `times` as many samples; in [0, 1), so that they serve as targets and logits alike."""
        shapes = [(times * s[0], *s[1:]) if i < self.batches else s for i, s in enumerate(self.shapes)]
        return [torch.rand(shape, dtype=dtype) for shape in shapes]


def _half(logits: Tensor, target: float, reduction: str = "mean") -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target), reduction=reduction)


def _mlp(x: Tensor, w0: Tensor, w1: Tensor, b0: Tensor, b1: Tensor) -> Tensor:
    return functional.mlp(x, [w0, w1], [b0, b1], ["leaky_relu", "tanh"], [0.2, 0.0])


def _torch_mlp(x: Tensor, w0: Tensor, w1: Tensor, b0: Tensor, b1: Tensor) -> Tensor:
    return torch.tanh(F.linear(F.leaky_relu(F.linear(x, w0, b0), 0.2), w1, b1))


OPS = {
    "bce": Op(functional.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits, ((6, 3), (6, 3)), 2),
    "bce_weighted": Op(
        lambda x, t: functional.binary_cross_entropy_with_logits(
            x, t, x.new_full((3,), 0.5), reduction="none", pos_weight=x.new_full((1,), 2.0)
        ),
        lambda x, t: F.binary_cross_entropy_with_logits(
            x, t, x.new_full((3,), 0.5), reduction="none", pos_weight=x.new_full((1,), 2.0)
        ),
        ((6, 3), (6, 3)),
        2,
    ),
    "discriminator_loss": Op(
        lambda x, y: functional.discriminator_loss(x, y, real_target=0.9),
        lambda x, y: _half(x, 0.9) + _half(y, 0.0),
        ((6, 1), (4, 1)),
        2,
    ),
    "generator_loss": Op(functional.generator_loss, lambda x: _half(x, 1.0), ((6, 1),), 1),
    "generator_loss_minimax": Op(
        lambda x: functional.generator_loss(x, kind="minimax", reduction="none"),
        lambda x: -_half(x, 0.0, "none"),
        ((6, 1),),
        1,
    ),
    "discriminator_loss_hinge": Op(
        lambda x, y: functional.discriminator_loss(x, y, kind="hinge"),
        lambda x, y: F.relu(1 - x).mean() + F.relu(1 + y).mean(),
        ((6, 1), (4, 1)),
        2,
    ),
    "discriminator_loss_wasserstein": Op(
        lambda x, y: functional.discriminator_loss(x, y, kind="wasserstein"),
        lambda x, y: (-x).mean() + (1 * y).mean(),
        ((6, 1), (4, 1)),
        2,
    ),
    "discriminator_loss_least_squares": Op(
        lambda x, y: functional.discriminator_loss(x, y, kind="least_squares"),
        lambda x, y: ((x - 1) ** 2).mean() / 2 + (y**2).mean() / 2,
        ((6, 1), (4, 1)),
        2,
    ),
    "generator_loss_relativistic": Op(
        lambda x, y: functional.generator_loss(x, y, kind="relativistic", reduction="none"),
        lambda x, y: _half(x - y, 1.0, "none"),
        ((6, 1), (6, 1)),
        2,
    ),
    "linear_act": Op(
        lambda x, w, b: functional.linear_act(x, w, b, "gelu"),
        lambda x, w, b: F.gelu(F.linear(x, w, b)),
        ((6, 4), (3, 4), (3,)),
        1,
    ),
    "segmented_activation": Op(
        lambda x, g: functional.segmented_activation(
            x, [2, 3, 1, 2], ["tanh", "gumbel_softmax", "identity", "softmax"], tau=0.5, noise=g
        ),
        lambda x, g: torch.cat(
            [x[..., :2].tanh(), ((x[..., 2:5] + g) / 0.5).softmax(-1), x[..., 5:6], x[..., 6:].softmax(-1)], -1
        ),
        ((6, 8), (6, 3)),
        2,
    ),
    "mlp": Op(_mlp, _torch_mlp, ((6, 4), (5, 4), (2, 5), (5,), (2,)), 1),
}
