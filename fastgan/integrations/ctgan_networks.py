"""ctgan's two networks, forward and backward by hand: what its step needs of them, and nothing more."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class ResidualGenerator:
    """The forward and backward pass of ctgan's Generator, in training, on its own parameters.

    Each Residual layer puts its output before its input, and the next one takes both. So one buffer holds all of them:
    the noise at its end, before it the first layer's output, and so on; a layer's input is the buffer from some column
    on, and nothing is concatenated. Gradients lie in a second buffer in the same way.
    """

    def __init__(self, generator: Any, embedding: int) -> None:
        """Take its layers.

        Args:
            generator: ctgan's Generator: a `seq` of Residual layers (fc, bn, relu), and a Linear.
            embedding: the columns of the noise before those of the levels.
        """
        self._embedding = embedding
        *residuals, self._last = generator.seq
        self._residuals = list(residuals)
        widths = [layer.fc.out_features for layer in self._residuals]
        # The column of the buffer at which the input of each layer begins, the last Linear's at 0.
        self._starts = [sum(widths[i:]) for i in range(len(widths) + 1)]
        self._inputs = self._last.in_features - sum(widths)
        self._buffer = self._gradient = torch.empty(0)
        self._saved: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, noise: Tensor, level: Tensor | None = None) -> Tensor:
        """The output before its activation, and what `backward` needs of it.

        Args:
            noise: (batch, embedding + levels).
            level: (batch,), of which the last columns of the noise are the one-hot form: of these each layer takes
                a column of its weight, and multiplies nothing. Or None, where they are any numbers.
        """
        with torch.no_grad():
            shape = (len(noise), self._starts[0] + self._inputs)
            if self._buffer.shape != shape or self._buffer.device != noise.device or self._buffer.dtype != noise.dtype:
                self._buffer, self._gradient = noise.new_empty(shape), noise.new_empty(shape)
            buffer = self._buffer
            buffer[:, self._starts[0] :] = noise
            self._saved = []
            for layer, (start, end) in zip(self._residuals, pairwise(self._starts), strict=True):
                linear = self._linear(layer.fc, start, level)
                norm = layer.bn
                normalized, mean, inverse = torch.native_batch_norm(
                    linear, norm.weight, norm.bias, norm.running_mean, norm.running_var, True, norm.momentum, norm.eps
                )
                norm.num_batches_tracked += 1
                torch.clamp_min(normalized, 0, out=buffer[:, end:start])
                self._saved.append((linear, mean, inverse))
            return self._linear(self._last, 0, level)

    def _linear(self, layer: Any, start: int, level: Tensor | None) -> Tensor:
        """A layer of the buffer from column `start` on."""
        if level is None:
            return functional.linear(self._buffer[:, start:], layer.weight, layer.bias)
        levels = self._inputs - self._embedding
        numbers = layer.in_features - levels
        output = functional.linear(self._buffer[:, start : start + numbers], layer.weight[:, :numbers], layer.bias)
        return output.add_(layer.weight[:, numbers:].t().contiguous().index_select(0, level))

    def backward(self, gradient: Tensor) -> None:
        """Sets the gradients of all parameters.

        A Linear right before a BatchNorm has a bias without gradient, since the batch mean is subtracted: it is zero.

        Args:
            gradient: of the loss by the output of the latest `forward`.
        """
        with torch.no_grad():
            buffer, into = self._buffer, self._gradient
            _set_gradient(self._last.weight, gradient.t().mm(buffer))
            _set_gradient(self._last.bias, gradient.sum(0))
            outputs = self._starts[0]  # the noise's own gradient is nobody's
            torch.mm(gradient, self._last.weight[:, :outputs], out=into[:, :outputs])
            spans = list(pairwise(self._starts))
            for layer, (start, end), saved in reversed(list(zip(self._residuals, spans, self._saved, strict=True))):
                linear, mean, inverse = saved
                norm = layer.bn
                through = torch.ops.aten.threshold_backward(into[:, end:start], buffer[:, end:start], 0)
                to_linear, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
                    through, linear, norm.weight, norm.running_mean, norm.running_var, mean, inverse, True, norm.eps,
                    [True, True, True],
                )  # fmt: skip
                _set_gradient(norm.weight, to_weight)
                _set_gradient(norm.bias, to_bias)
                _set_gradient(layer.fc.weight, to_linear.t().mm(buffer[:, start:]))
                _set_gradient(layer.fc.bias, torch.zeros_like(layer.fc.bias))
                if start < outputs:
                    into[:, start:outputs].addmm_(to_linear, layer.fc.weight[:, : outputs - start])


class CriticInput:
    """The mean score of a batch, and its gradient by the batch: of ctgan's Discriminator, with dropout in training."""

    def __init__(self, layers: Any, pac: int) -> None:
        """Take its layers.

        Args:
            layers: a Sequential of Linear, LeakyReLU and Dropout, any number of times, and a Linear.
            pac: so many samples are one input.
        """
        *hidden, self._last = layers
        self._hidden = [(hidden[i], hidden[i + 1], hidden[i + 2]) for i in range(0, len(hidden), 3)]
        self._pac = pac

    def score_and_gradient(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """The mean, 0-d, and its gradient, of the batch's shape.

        Args:
            batch: (samples, columns), samples a multiple of pac.
        """
        with torch.no_grad():
            x = batch.reshape(len(batch) // self._pac, -1)
            saved = []
            for linear, activation, dropout in self._hidden:
                z = functional.linear(x, linear.weight, linear.bias)
                p = dropout.p if dropout.training else 0.0
                kept = kept_by_dropout(z, p)
                x = _dropped(functional.leaky_relu(z, activation.negative_slope), kept, p)
                saved.append((z, kept, p))
            score = functional.linear(x, self._last.weight, self._last.bias).mean()
            gradient: Tensor = (self._last.weight / len(x)).expand(len(x), -1)
            for (linear, activation, _), (z, kept, p) in zip(reversed(self._hidden), reversed(saved), strict=True):
                to_activation = _dropped(gradient, kept, p)
                slope = activation.negative_slope
                gradient = torch.ops.aten.leaky_relu_backward(to_activation, z, slope, False).mm(linear.weight)
            return score, gradient.reshape(batch.shape)


def kept_by_dropout(like: Tensor, p: float) -> Tensor:
    """A mask of dropout, True with probability 1 - p; bernoulli_ takes three times as long."""
    if p != 0.5:
        return torch.rand_like(like) >= p
    # A bit an element: a tenth of the time.
    drawn = torch.randint(256, (-(-like.numel() // 8), 1), dtype=torch.uint8, device=like.device)
    bits = 2 ** torch.arange(8, dtype=torch.uint8, device=like.device)
    return ((drawn & bits) != 0).view(-1)[: like.numel()].view(like.shape)


def _dropped(x: Tensor, kept: Tensor, p: float) -> Tensor:
    dropped: Tensor = torch.ops.aten.native_dropout_backward(x, kept, 0.0 if p == 1 else 1 / (1 - p))
    return dropped


def _set_gradient(parameter: Tensor, gradient: Tensor) -> None:
    parameter.grad = gradient
