"""The fused functions: losses, layers and gradient penalties.

Each takes any real floating dtype, any device, empty and non-contiguous tensors, is differentiable to every order, and
raises the same errors on every backend. Reductions run in a fixed order: the same input gives the same bits.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from fastgan import backend, checks, gate, reference

_REDUCTION = {"none": 0, "mean": 1, "sum": 2}  # torch's own numbers (at::Reduction)
# The numbers that the compiled ops take for them.
ACTIVATION = {name: number for number, name in enumerate(backend.module.activations())} if backend.module else {}
LOSS_TERM = {name: number for number, name in enumerate(reference.LOSS_TERMS)}
SEGMENT_KIND = {name: number for number, name in enumerate(reference.SEGMENT_KINDS)}

__all__ = [
    "binary_cross_entropy_with_logits",
    "discriminator_loss",
    "generator_loss",
    "gradient_penalty",
    "linear_act",
    "mlp",
    "r1_penalty",
    "segmented_activation",
]


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy of logits against targets, in one pass; `torch.nn.functional`'s signature and semantics.

    loss = weight * ((1 - target) * input + (1 + (pos_weight - 1) * target) * softplus(-input))

    Args:
        input: logits, any shape, floating.
        target: probabilities in [0, 1], the shape of input, floating; differentiable too.
        weight: rescaling, broadcastable to input's shape.
        size_average: deprecated, as in PyTorch; see reduction.
        reduce: deprecated, as in PyTorch; see reduction.
        reduction: `none`, `mean` (over all elements) or `sum`.
        pos_weight: weight of the positive term, broadcastable to input's shape (one per class: its last dimension).

    Returns:
        A 0-d tensor, or with `none` a tensor of input's shape.

    Raises:
        ValueError: target's shape is not input's, or the reduction is unknown.
        RuntimeError: a dtype is not floating, devices differ, or a weight does not broadcast.
    """
    if size_average is not None or reduce is not None:
        reduction = _legacy_reduction(size_average, reduce)
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    checks.floating("input", input)
    checks.floating("target", target)
    if target.shape != input.shape:
        raise ValueError(f"target of shape {tuple(target.shape)} must have the shape {tuple(input.shape)} of input")
    checks.same_device("target", target, "input", input)
    compiled = _fits(target, input) and gate.serves(input, "cross_entropy")
    for name, value in (("weight", weight), ("pos_weight", pos_weight)):
        if value is None:
            continue
        checks.tensor(name, value)
        if value.dim() > 0:  # PyTorch takes a 0-d weight from any device
            checks.same_device(name, value, "input", input)
        checks.broadcastable(name, value, "input", input.shape)
        compiled = compiled and _fits(value, input) and not value.requires_grad
    if compiled:
        loss: Tensor = backend.ops.bce_with_logits(input, target, weight, pos_weight, _REDUCTION[reduction])
        return loss
    return reference.binary_cross_entropy_with_logits(input, target, weight, reduction, pos_weight)


@overload
def discriminator_loss(
    real_logits: Tensor,
    fake_logits: Tensor,
    *,
    kind: str = "bce",
    real_target: float = 1.0,
    fake_target: float = 0.0,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor: ...


@overload
def discriminator_loss(
    real_logits: Tensor,
    fake_logits: Tensor,
    *,
    kind: str = "bce",
    real_target: float = 1.0,
    fake_target: float = 0.0,
    reduction: str,
) -> Tensor | tuple[Tensor, Tensor]: ...


def discriminator_loss(
    real_logits: Tensor,
    fake_logits: Tensor,
    *,
    kind: str = "bce",
    real_target: float = 1.0,
    fake_target: float = 0.0,
    reduction: str = "mean",
) -> Tensor | tuple[Tensor, Tensor]:
    """The discriminator's loss: its value and its gradients by both batches in one pass over the logits.

    `bce`: -E[log sigma(D(x))] - E[log(1 - sigma(D(G(z))))] (Goodfellow et al. 2014, arXiv:1406.2661, eq. 1), computed
    stably as E[softplus(-D(x))] + E[softplus(D(G(z)))]; with other targets each half is the binary cross-entropy
    against that constant (one-sided label smoothing: Salimans et al. 2016, arXiv:1606.03498, section 3.4).
    `relativistic`: E[softplus(-(D(x_i) - D(G(z_i))))], paired by row (Jolicoeur-Martineau 2018, arXiv:1807.00734,
    RpGAN; Huang et al. 2024, arXiv:2501.05441).
    `hinge`: E[relu(1 - D(x))] + E[relu(1 + D(G(z)))] (Lim & Ye 2017, arXiv:1705.02894).
    `wasserstein`: E[D(G(z))] - E[D(x)] (Arjovsky et al. 2017, arXiv:1701.07875).
    `least_squares`: E[(D(x) - a)^2]/2 + E[(D(G(z)) - b)^2]/2 with the targets a (real) and b (fake) (Mao et al. 2016,
    arXiv:1611.04076, eq. 2).

    Args:
        real_logits: D(x), any shape, floating.
        fake_logits: D(G(z)), the same dtype, any shape (the two batches may differ in size; each half has its own
            mean), but for `relativistic`: the shape of real_logits.
        kind: `bce`, `relativistic`, `hinge`, `wasserstein` or `least_squares`.
        real_target: target of the real half: in [0, 1] for `bce`, any finite number for `least_squares`. The other
            kinds take no targets.
        fake_target: target of the fake half, likewise.
        reduction: `mean`, `sum`, or `none` for the pair of unreduced halves (of `relativistic` one tensor).

    Returns:
        A 0-d tensor, or with `none` a pair of tensors of the shapes of real_logits and fake_logits; of `relativistic`
        one tensor of that shape.

    Raises:
        ValueError: the kind or reduction is unknown, the kind does not take such a target, or the shapes that
            `relativistic` pairs differ.
        RuntimeError: a dtype is not floating, or dtypes or devices differ.
    """
    direct = backend.direct()
    if direct is not None:
        loss: Tensor | tuple[Tensor, Tensor] | None
        loss = direct.discriminator_loss(real_logits, fake_logits, kind, real_target, fake_target, reduction)
        if loss is not None:
            return loss
    checks.choice("kind", kind, checks.DISCRIMINATOR_LOSSES)
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    of = reference.DISCRIMINATOR_LOSSES[kind]
    checks.loss_target("real_target", real_target, 1.0, f"kind {kind!r}", of)
    checks.loss_target("fake_target", fake_target, 0.0, f"kind {kind!r}", of)
    checks.floating("real_logits", real_logits)
    checks.floating("fake_logits", fake_logits)
    checks.same_device("fake_logits", fake_logits, "real_logits", real_logits)
    checks.same_dtype("fake_logits", fake_logits, "real_logits", real_logits)
    if of.is_paired:
        return _paired_loss(real_logits, fake_logits, of.real.target, kind, reduction)
    if not of.takes_targets:
        real_target, fake_target = of.real.target, of.fake.target
    term = of.real.term
    if reduction == "none":
        return (
            _logits_loss(real_logits, term, real_target, 1.0, reduction),
            _logits_loss(fake_logits, term, fake_target, 1.0, reduction),
        )
    if gate.serves(real_logits, "gan_losses"):
        whole: Tensor = backend.ops.discriminator_loss(
            real_logits, fake_logits, LOSS_TERM[term], real_target, fake_target, _REDUCTION[reduction]
        )
        return whole
    return reference.discriminator_loss(real_logits, fake_logits, term, real_target, fake_target, reduction)


def generator_loss(
    fake_logits: Tensor,
    real_logits: Tensor | None = None,
    *,
    kind: str = "non_saturating",
    target: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """The generator's loss: its value and its gradients in one pass over the logits.

    `non_saturating`: -E[log sigma(D(G(z)))] = E[softplus(-D(G(z)))], the loss used in practice (Goodfellow et al.
    2014, arXiv:1406.2661, section 3). `minimax` (saturating): E[log(1 - sigma(D(G(z))))] = -E[softplus(D(G(z)))]
    (eq. 1). With another target t these are the cross-entropy against t, and minus the cross-entropy against 1 - t.
    `relativistic`: E[softplus(-(D(G(z_i)) - D(x_i)))], paired by row. `hinge` and `wasserstein`: -E[D(G(z))].
    `least_squares`: E[(D(G(z)) - target)^2]/2. The sources of these are those of `discriminator_loss`.

    Args:
        fake_logits: D(G(z)), any shape, floating.
        real_logits: D(x), the shape and dtype of fake_logits: needed by `relativistic`, and only allowed for it.
        kind: `non_saturating`, `minimax`, `relativistic`, `hinge`, `wasserstein` or `least_squares`.
        target: what the generator wants the discriminator to answer: in [0, 1] for `non_saturating` and `minimax`, any
            finite number for `least_squares`. The other kinds take no target.
        reduction: `none`, `mean` or `sum`.

    Returns:
        A 0-d tensor, or with `none` a tensor of the shape of fake_logits.

    Raises:
        ValueError: the kind or reduction is unknown, the kind does not take such a target, real_logits are missing or
            too many, or their shape is another.
        RuntimeError: a dtype is not floating, or dtypes or devices differ.
    """
    direct = backend.direct()
    if direct is not None:
        loss: Tensor | None = direct.generator_loss(fake_logits, real_logits, kind, target, reduction)
        if loss is not None:
            return loss
    checks.choice("kind", kind, checks.GENERATOR_LOSSES)
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    of = reference.GAN_LOSSES[kind]
    checks.loss_target("target", target, 1.0, f"kind {kind!r}", of)
    checks.floating("fake_logits", fake_logits)
    if not of.is_paired:
        if real_logits is not None:
            raise ValueError(f"real_logits must be left out for kind {kind!r}, whose loss is of the fakes alone")
        term, sign = of.generator.term, of.generator.sign
        return _logits_loss(fake_logits, term, of.generator_target(target), sign, reduction)
    if real_logits is None:
        raise ValueError(f"real_logits must be given for kind {kind!r}, which pairs them with fake_logits, not None")
    checks.floating("real_logits", real_logits)
    checks.same_device("real_logits", real_logits, "fake_logits", fake_logits)
    checks.same_dtype("real_logits", real_logits, "fake_logits", fake_logits)
    return _paired_loss(fake_logits, real_logits, of.generator.target, kind, reduction, names=("fake", "real"))


def linear_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "identity",
    negative_slope: float = 0.01,
) -> Tensor:
    """activation(input @ weight.T + bias): one layer, with bias and activation fused into the product's epilogue.

    Args:
        input: (..., in), floating.
        weight: (out, in), the dtype and device of input.
        bias: (out,) or None.
        activation: such as `identity`, `relu`, `leaky_relu` or `tanh`: a name in `fastgan.reference.ACTIVATIONS`, each
            with the default parameters of its torch.nn module.
        negative_slope: slope of leaky_relu below zero.

    Returns:
        (..., out).

    Raises:
        ValueError: the activation is unknown.
        RuntimeError: a shape, dtype or device does not fit.
    """
    direct = backend.direct()
    if direct is not None:
        output: Tensor | None = direct.linear_act(input, weight, bias, activation, negative_slope)
        if output is not None:
            return output
    checks.choice("activation", activation, reference.ACTIVATIONS)
    checks.number("negative_slope", negative_slope)
    checks.layer_input(input)
    checks.linear(input, weight, bias, input.shape[-1])
    return _mlp(input, [weight], [bias], [activation], [negative_slope])


def mlp(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None,
    activations: Sequence[str],
    negative_slopes: Sequence[float] | None = None,
) -> Tensor:
    """A whole stack of linear_act layers as one autograd node.

    Args:
        input: (..., in), floating.
        weights: one (out_l, in_l) a layer; in_1 is in, and each in_l is the out of the layer before.
        biases: one (out_l,) or None a layer; None for no biases at all.
        activations: one name a layer; see linear_act.
        negative_slopes: one a layer, used by leaky_relu; None means 0.01 everywhere.

    Returns:
        (..., out of the last layer); input itself where there are no layers.

    Raises:
        ValueError: an activation is unknown, or the lists differ in length.
        RuntimeError: a shape, dtype or device does not fit.
    """
    direct = backend.direct()
    if direct is not None:
        output: Tensor | None = direct.mlp(input, weights, biases, activations, negative_slopes)
        if output is not None:
            return output
    count = len(weights)
    biases = [None] * count if biases is None else list(biases)
    slopes = [0.01] * count if negative_slopes is None else list(negative_slopes)
    checks.same_length("biases", biases, count)
    checks.same_length("activations", activations, count)
    checks.same_length("negative_slopes", slopes, count)
    checks.layer_input(input)
    width = input.shape[-1]
    for i in range(count):
        if activations[i] not in reference.ACTIVATIONS:
            checks.choice(f"activations[{i}]", activations[i], reference.ACTIVATIONS)
        if type(slopes[i]) is not float or not -math.inf < slopes[i] < math.inf:
            checks.number(f"negative_slopes[{i}]", slopes[i])
        width = checks.linear(input, weights[i], biases[i], width, i)
    return _mlp(input, list(weights), biases, list(activations), slopes)


def segmented_activation(
    input: Tensor, widths: Sequence[int], kinds: Sequence[str], *, tau: float = 0.2, noise: Tensor | None = None
) -> Tensor:
    """Each run of columns through an activation of its own: what ends the generator of a table, in one pass each way.

    A column of reals takes `tanh` or `identity`. A discrete column of k levels takes k columns: `softmax`, or
    `gumbel_softmax`, which samples: softmax((x + g) / tau) with g = -log(-log u), one uniform u an element (Jang et
    al. 2016, arXiv:1611.01144, eq. 1). The smaller tau, the nearer a sample is to one-hot.

    Args:
        input: (..., columns), floating.
        widths: of each segment, in columns, at least 1; their sum is the number of columns.
        kinds: of each segment: `tanh`, `identity`, `softmax` or `gumbel_softmax`.
        tau: the temperature of the gumbel_softmax segments, greater than 0.
        noise: the draws g, (..., the columns of the gumbel_softmax segments alone, in their order), floating, on
            input's device; differentiable too. None draws them from PyTorch's generator of that device, so that
            `torch.manual_seed` reproduces them; nothing is drawn where no segment is gumbel_softmax.

    Returns:
        A tensor of input's shape and dtype. 16-bit input is computed in float32 and rounded once; under autocast it is
        taken as float32, as PyTorch's softmax is.

    Raises:
        TypeError, ValueError: widths, kinds or tau are not such.
        RuntimeError: input or noise has another number of columns, a dtype that is not floating, or another device.
    """
    checks.segments(widths, kinds)
    checks.number("tau", tau, 0.0, low_open=True)
    checks.segmented_input(input, sum(widths))
    gumbel = sum(width for width, kind in zip(widths, kinds, strict=True) if kind == "gumbel_softmax")
    if noise is not None:
        checks.gumbel_draws(noise, input, gumbel)
    if input.dtype.itemsize == 2 and input.device.type != "meta" and torch.is_autocast_enabled(input.device.type):
        input = input.float()
    if noise is None and gumbel > 0:
        noise = reference.gumbel_noise(input, gumbel)
    if gate.serves(input, "segments"):
        if noise is not None:
            noise = noise.to(reference.arithmetic_dtype(input.dtype))
        output: Tensor = backend.ops.segmented_activation(
            input, noise, widths, [SEGMENT_KIND[kind] for kind in kinds], tau
        )
        return output
    return reference.segmented_activation(input, widths, kinds, tau, noise)


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, *, center: float = 1.0) -> Tensor:
    """The WGAN-GP penalty: the batch mean of (||grad_x critic(x)||_2 - center)^2 at random interpolates.

    x = u real + (1 - u) fake with one uniform u a sample (Gulrajani et al. 2017, arXiv:1704.00028, algorithm 1);
    multiply by their lambda, 10. Differentiable in the critic's parameters, through the fused layers too.

    Args:
        critic: maps (batch, ...) to one score a sample, any shape.
        real: (batch, ...), floating.
        fake: the shape, dtype and device of real.
        center: the norm that costs nothing: 1, or 0 for the zero-centred penalty; at least 0.

    Returns:
        A 0-d tensor.

    Raises:
        ValueError: the shapes differ, there is no batch dimension, or center is negative.
        RuntimeError: a dtype is not floating, dtypes or devices differ, or critic does not depend on its input.
    """
    checks.number("center", center, 0.0)
    _batch("real", real)
    _batch("fake", fake)
    if fake.shape != real.shape:
        raise ValueError(f"fake of shape {tuple(fake.shape)} must have the shape {tuple(real.shape)} of real")
    checks.same_device("fake", fake, "real", real)
    checks.same_dtype("fake", fake, "real", real)
    u = torch.rand(real.shape[:1], dtype=real.dtype, device=real.device).view(-1, *[1] * (real.dim() - 1))
    gradient = _input_gradient(critic, fake.detach() + u * (real.detach() - fake.detach()))
    norms: Tensor = torch.linalg.vector_norm(gradient, dim=1)
    return (norms - center).square().mean()


def r1_penalty(critic: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """The R1 penalty, without its gamma/2: the batch mean of ||grad_x critic(x)||_2^2 on real data.

    Mescheder et al. 2018, arXiv:1801.04406, eq. 9.

    Args:
        critic: maps (batch, ...) to one score a sample, any shape.
        real: (batch, ...), floating.

    Returns:
        A 0-d tensor, differentiable in the critic's parameters.

    Raises:
        ValueError: real has no batch dimension.
        RuntimeError: the dtype is not floating, or critic does not depend on its input.
    """
    _batch("real", real)
    return _input_gradient(critic, real.detach()).square().sum(1).mean()


def _fits(value: Tensor, input: Tensor) -> bool:
    """Whether the compiled cross-entropy takes this tensor beside input.

    PyTorch's result for mixed dtypes has the target's; that, and its refusal to differentiate by a weight, are left to
    the reference. Autocast makes one dtype of those that it casts.
    """
    if value.device != input.device:
        return False
    if value.dtype == input.dtype:
        return True
    return torch.is_autocast_enabled(input.device.type) and all(
        t.dtype in (torch.float32, torch.bfloat16, torch.float16) for t in (value, input)
    )


def _logits_loss(logits: Tensor, term: str, target: float, sign: float, reduction: str) -> Tensor:
    if gate.serves(logits, "gan_losses"):
        loss: Tensor = backend.ops.logits_loss(logits, LOSS_TERM[term], target, sign, _REDUCTION[reduction])
        return loss
    return reference.logits_loss(logits, term, target, sign, reduction)


def _paired_loss(
    logits: Tensor, minus: Tensor, target: float, kind: str, reduction: str, names: tuple[str, str] = ("real", "fake")
) -> Tensor:
    if minus.shape != logits.shape:
        raise ValueError(
            f"{names[1]}_logits of shape {tuple(minus.shape)} must have the shape {tuple(logits.shape)} of "
            f"{names[0]}_logits for kind {kind!r}, which pairs them"
        )
    if gate.serves(logits, "gan_losses"):
        loss: Tensor = backend.ops.paired_loss(logits, minus, target, _REDUCTION[reduction])
        return loss
    return reference.paired_loss(logits, minus, target, reduction)


def _mlp(
    input: Tensor,
    weights: list[Tensor],
    biases: list[Tensor | None],
    activations: list[str],
    slopes: list[float],
) -> Tensor:
    if weights and gate.serves(input, "layers"):
        output: Tensor = backend.ops.mlp(input, weights, biases, [ACTIVATION[name] for name in activations], slopes)
        return output
    return reference.mlp(input, weights, biases, activations, slopes)


def _batch(name: str, value: Tensor) -> None:
    checks.floating(name, value)
    if value.dim() == 0:
        raise ValueError(f"{name} must have shape (batch, ...), not (), a tensor of no dimensions")


def _input_gradient(critic: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The gradient of the summed scores by the input, (batch, features), itself differentiable."""
    with torch.enable_grad():
        at = at.requires_grad_()
        score = critic(at).sum()
        gradient = None
        if score.requires_grad:
            (gradient,) = torch.autograd.grad(score, at, create_graph=True, allow_unused=True)
    if gradient is None:
        raise RuntimeError(
            "critic must give scores that depend on its input, but autograd finds no path from them to it"
        )
    return gradient.reshape(len(gradient), -1) if gradient.numel() else gradient.flatten(1)


def _legacy_reduction(size_average: bool | None, reduce: bool | None) -> str:
    """The reduction that PyTorch's deprecated pair of flags means: unset is True; reduce rules."""
    reduction = "none" if reduce is False else "sum" if size_average is False else "mean"
    warnings.warn(f"size_average and reduce are deprecated, please use reduction={reduction!r} instead.", stacklevel=3)
    return reduction
