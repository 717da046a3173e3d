"""The losses of `fastgan.functional` as modules; they are in `fastgan.nn`."""

from __future__ import annotations

from torch import Tensor, nn

from fastgan import checks, functional, reference

__all__ = ["BCEWithLogitsLoss", "DiscriminatorLoss", "GeneratorLoss"]


class BCEWithLogitsLoss(nn.BCEWithLogitsLoss):
    """`torch.nn.BCEWithLogitsLoss`, constructor and all, computed in one pass.

    The formula and the errors are those of `fastgan.functional.binary_cross_entropy_with_logits`.

    Args:
        weight: rescaling, broadcastable to the logits' shape.
        size_average: deprecated, as in PyTorch; see reduction.
        reduce: deprecated, as in PyTorch; see reduction.
        reduction: `none`, `mean` (over all elements) or `sum`.
        pos_weight: weight of the positive term, broadcastable to the logits' shape.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits against targets.

        Args:
            input: logits, any shape, floating.
            target: probabilities in [0, 1], the shape of input.

        Returns:
            A 0-d tensor, or with reduction `none` a tensor of input's shape.

        Raises:
            ValueError: target's shape is not input's.
            RuntimeError: a dtype is not floating, devices differ, or a weight does not broadcast.
        """
        return functional.binary_cross_entropy_with_logits(
            input, target, self.weight, reduction=self.reduction, pos_weight=self.pos_weight
        )


class DiscriminatorLoss(nn.Module):
    """`fastgan.functional.discriminator_loss` as a module, where its formulas and their sources stand.

    Args:
        real_target: target of the real half: in [0, 1] for kind `bce`, where 0.9 is one-sided label smoothing, any
            finite number for `least_squares`. The other kinds take no targets.
        fake_target: target of the fake half, likewise.
        reduction: `mean`, `sum`, or `none` for the pair of unreduced halves (of `relativistic` one tensor).
        kind: `bce`, `relativistic`, `hinge`, `wasserstein` or `least_squares`.

    Raises:
        TypeError, ValueError: the kind or reduction is unknown, or the kind does not take such a target.
    """

    kind = "bce"  # of a module that was pickled before it had one

    def __init__(
        self, real_target: float = 1.0, fake_target: float = 0.0, reduction: str = "mean", *, kind: str = "bce"
    ) -> None:
        super().__init__()
        checks.choice("kind", kind, checks.DISCRIMINATOR_LOSSES)
        loss = reference.DISCRIMINATOR_LOSSES[kind]
        checks.loss_target("real_target", real_target, 1.0, f"kind {kind!r}", loss)
        checks.loss_target("fake_target", fake_target, 0.0, f"kind {kind!r}", loss)
        checks.choice("reduction", reduction, checks.REDUCTIONS)
        self.kind, self.real_target, self.fake_target, self.reduction = kind, real_target, fake_target, reduction

    def forward(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The loss of logits of real samples and of fakes.

        Args:
            real_logits: D(x), any shape, floating.
            fake_logits: D(G(z)), any shape (of `relativistic` that of real_logits), the same dtype.

        Returns:
            A 0-d tensor, or with reduction `none` a pair of tensors of the shapes of the logits; of `relativistic` one.

        Raises:
            ValueError: the shapes that `relativistic` pairs differ.
            RuntimeError: a dtype is not floating, or dtypes or devices differ.
        """
        return functional.discriminator_loss(
            real_logits,
            fake_logits,
            kind=self.kind,
            real_target=self.real_target,
            fake_target=self.fake_target,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return (
            f"real_target={self.real_target}, fake_target={self.fake_target}, reduction={self.reduction!r}, "
            f"kind={self.kind!r}"
        )


class GeneratorLoss(nn.Module):
    """`fastgan.functional.generator_loss` as a module, where its formulas and their sources stand.

    Args:
        kind: `non_saturating`, `minimax`, `relativistic`, `hinge`, `wasserstein` or `least_squares`.
        target: what the generator wants the discriminator to answer: in [0, 1] for `non_saturating` and `minimax`, any
            finite number for `least_squares`. The other kinds take no target.
        reduction: `none`, `mean` or `sum`.

    Raises:
        TypeError, ValueError: the kind or reduction is unknown, or the kind does not take such a target.
    """

    def __init__(self, kind: str = "non_saturating", target: float = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        checks.choice("kind", kind, checks.GENERATOR_LOSSES)
        checks.loss_target("target", target, 1.0, f"kind {kind!r}", reference.GAN_LOSSES[kind])
        checks.choice("reduction", reduction, checks.REDUCTIONS)
        self.kind, self.target, self.reduction = kind, target, reduction

    def forward(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        """The loss of logits of fakes.

        Args:
            fake_logits: D(G(z)), any shape, floating.
            real_logits: D(x), the same shape and dtype: needed by `relativistic`, and only allowed for it.

        Returns:
            A 0-d tensor, or with reduction `none` a tensor of the shape of fake_logits.

        Raises:
            ValueError: real_logits are missing or too many, or their shape is another.
            RuntimeError: a dtype is not floating, or dtypes or devices differ.
        """
        return functional.generator_loss(
            fake_logits, real_logits, kind=self.kind, target=self.target, reduction=self.reduction
        )

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, target={self.target}, reduction={self.reduction!r}"
