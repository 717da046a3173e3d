"""A Linear layer whose products have operands rounded to bfloat16, and exact sums: what the engine does in bf16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def rounded(value: Tensor) -> Tensor:
    return value.to(torch.bfloat16).to(value.dtype)


class RoundedProduct(torch.autograd.Function):
    """x w^T and its derivatives, each product of operands rounded to bfloat16, with exact sums."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x, weight = rounded(x), rounded(weight)
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        (x, weight), grad = ctx.saved_tensors, rounded(grad)
        return grad @ weight, grad.T @ x


class RoundedLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        z = RoundedProduct.apply(input, self.weight)
        return z if self.bias is None else z + self.bias
