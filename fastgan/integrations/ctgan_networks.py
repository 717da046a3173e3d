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

    The last inputs of each layer are the one-hot form of a level. They are never made: forward a level takes a column
    of the weight, and that column's gradient is the sum over the samples that have the level.
    """

    def __init__(self, generator: Any, embedding: int) -> None:
        """Take its layers.

        Args:
            generator: ctgan's Generator: a `seq` of Residual layers (fc, bn, relu), and a Linear.
            embedding: the columns of the noise; the inputs after those are levels.
        """
        *residuals, self._last = generator.seq
        self._residuals = list(residuals)
        widths = [layer.fc.out_features for layer in self._residuals]
        # The column of the buffer at which the input of each layer begins, the last Linear's at 0.
        self._starts = [sum(widths[i:]) for i in range(len(widths) + 1)]
        self._width = self._starts[0] + embedding
        self._levels = self._last.in_features - self._width
        self._buffer = self._gradient = torch.empty(0)
        self._level: Tensor | None = None
        self._saved: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, noise: Tensor, level: Tensor | None = None, batches: int = 1) -> Tensor:
        """The output before its activation, and what `backward` needs of the last batch.

        Args:
            noise: (batches batch, embedding).
            level: (batches batch,), where there are levels.
            batches: which have statistics of their own, as if they came one after the other.
        """
        with torch.no_grad():
            batch = len(noise) // batches
            self._resize(noise, batch)
            buffer = self._buffer
            buffer[:, self._starts[0] :] = noise
            self._level, self._saved = level, []
            for layer, (start, end) in zip(self._residuals, pairwise(self._starts), strict=True):
                linear = self._linear(layer.fc, start, level)
                norm = layer.bn
                for own, into in zip(linear.split(batch), buffer[:, end:start].split(batch), strict=True):
                    normalized, mean, inverse = torch.native_batch_norm(
                        own, norm.weight, norm.bias, norm.running_mean, norm.running_var, True, norm.momentum, norm.eps
                    )
                    torch.clamp_min(normalized, 0, out=into)
                norm.num_batches_tracked += batches
                self._saved.append((own, mean, inverse))
            return self._linear(self._last, 0, level)

    def _resize(self, noise: Tensor, batch: int) -> None:
        """Makes the buffers anew where they do not fit: of all batches, and of the gradients of one."""
        wanted, known = (len(noise), batch, noise.device, noise.dtype), self._buffer
        if (len(known), len(self._gradient), known.device, known.dtype) != wanted:
            self._buffer = noise.new_empty(len(noise), self._width)
            self._gradient = noise.new_empty(batch, self._starts[0])

    def _linear(self, layer: Any, start: int, level: Tensor | None) -> Tensor:
        """A layer of the buffer from column `start` on."""
        if level is None:
            return functional.linear(self._buffer[:, start:], layer.weight, layer.bias)
        numbers = layer.in_features - self._levels
        # What a sample of each level begins with, level by level in a row.
        begun: Tensor = layer.weight.new_empty(self._levels, layer.out_features)
        torch.add(layer.weight[:, numbers:].t(), layer.bias, out=begun)
        return begun.index_select(0, level).addmm_(self._buffer[:, start:], layer.weight[:, :numbers].t())

    def backward(self, gradient: Tensor) -> None:
        """Sets the gradients of all parameters.

        A Linear right before a BatchNorm has a bias without gradient, since the batch mean is subtracted: it is zero.

        Args:
            gradient: (batch, columns), of the loss by the output of the last batch of the latest `forward`.
        """
        with torch.no_grad():
            batch, into = len(gradient), self._gradient
            buffer = self._buffer[-batch:]
            level = None if self._level is None else self._level[-batch:]
            self._set_weight_gradient(self._last, gradient, buffer, level)
            self._last.bias.grad = gradient.sum(0)
            outputs = self._starts[0]  # the noise's own gradient is nobody's
            torch.mm(gradient, self._last.weight[:, :outputs], out=into)
            spans = list(pairwise(self._starts))
            for layer, (start, end), saved in reversed(list(zip(self._residuals, spans, self._saved, strict=True))):
                linear, mean, inverse = saved
                norm = layer.bn
                through = torch.ops.aten.threshold_backward(into[:, end:start], buffer[:, end:start], 0)
                to_linear, norm.weight.grad, norm.bias.grad = torch.ops.aten.native_batch_norm_backward(
                    through, linear, norm.weight, norm.running_mean, norm.running_var, mean, inverse, True, norm.eps,
                    [True, True, True],
                )  # fmt: skip
                self._set_weight_gradient(layer.fc, to_linear, buffer[:, start:], level)
                layer.fc.bias.grad = torch.zeros_like(layer.fc.bias)
                if start < outputs:
                    into[:, start:].addmm_(to_linear, layer.fc.weight[:, : outputs - start])

    def _set_weight_gradient(self, layer: Any, gradient: Tensor, input: Tensor, level: Tensor | None) -> None:
        """Into the tensor that the last step's gradient is in.

        Args:
            layer: a Linear.
            gradient: by its output, (batch, out).
            input: but for the levels, (batch, in - levels).
            level: (batch,), where there are levels.
        """
        if layer.weight.grad is None:
            layer.weight.grad = torch.empty_like(layer.weight)
        numbers = input.shape[1]
        torch.mm(gradient.t(), input, out=layer.weight.grad[:, :numbers])
        if level is not None:
            of_levels = torch.ops.aten.embedding_dense_backward(gradient, level, self._levels, -1, False)
            layer.weight.grad[:, numbers:] = of_levels.t()


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
