"""torch.ops.fastgan.* called directly with wrong arguments: an error, never a read past the end."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.usefixtures("compiled")

X, W0, W1 = torch.ones(6, 3), torch.ones(4, 3), torch.ones(2, 4)
WEIGHTS, BIASES, CALL, SLOPES = [W0, W1], [torch.ones(4), None], [7, 4], [0.0, 0.0]  # silu, tanh
ALL = [1, 1, 1, 1, 0]


def outputs() -> list[torch.Tensor]:
    return torch.ops.fastgan.mlp_forward(X, WEIGHTS, BIASES, CALL, SLOPES)


def backward(grad: torch.Tensor | None = None, saved=None, need=ALL, keep: bool = False) -> list[torch.Tensor]:
    grad = torch.ones(6, 2) if grad is None else grad
    saved = outputs() if saved is None else saved
    return torch.ops.fastgan.mlp_backward(grad, X, WEIGHTS, saved, CALL, SLOPES, need, keep)


def double_backward(cotangents=None, given=(1, 0, 0, 0, 0), kept=None, need=(1, *ALL)) -> list[torch.Tensor]:
    cotangents = [torch.ones_like(X)] if cotangents is None else cotangents
    kept = backward(keep=True)[4:] if kept is None else kept
    return torch.ops.fastgan.mlp_double_backward(
        cotangents, given, X, WEIGHTS, outputs(), kept, CALL, SLOPES, list(need)
    )


ONE = torch.ones(())


def loss_double_backward(cotangents, grad=ONE, reduction: int = 1) -> tuple[torch.Tensor, list[torch.Tensor]]:
    return torch.ops.fastgan.logits_loss_double_backward(cotangents, grad, [X], 0, [1.0], 1.0, False, reduction)


def test_the_calls_that_the_faults_are_made_from_work() -> None:
    assert len(backward()) == 4
    assert len(double_backward()) == 5
    assert loss_double_backward([X])[1][0].shape == X.shape
    assert len(torch.ops.fastgan.logits_loss_backward(ONE, [X], 0, True, 1)) == 2


BAD = {
    "no outputs": lambda: backward(saved=[]),
    "no pre-activation": lambda: backward(saved=outputs()[:2]),
    "small output": lambda: backward(saved=[o[:1] for o in outputs()]),
    "output of another dtype": lambda: backward(saved=[o.bfloat16() for o in outputs()]),
    "gradient with more rows": lambda: backward(torch.ones(600, 2)),
    "gradient that is wider": lambda: backward(torch.ones(6, 3000)),
    "gradient of another dtype": lambda: backward(torch.ones(6, 2).double()),
    "too few flags": lambda: backward(need=[1]),
    "no flags of need": lambda: double_backward(need=[]),
    "too few cotangents": lambda: double_backward(cotangents=[]),
    "too few intermediates": lambda: double_backward(kept=[torch.ones(6, 4)]),
    "small intermediates": lambda: double_backward(kept=[torch.ones(1, 1)] * 4),
    "no layers": lambda: torch.ops.fastgan.mlp(X, [], [], [], []),
    "no layers on meta": lambda: torch.ops.fastgan.mlp(X.to("meta"), [], [], [], []),
    "0-d input on meta": lambda: torch.ops.fastgan.mlp(
        torch.ones((), device="meta"), [W0.to("meta")], [None], [0], [0.0]
    ),
    "1-d weight": lambda: torch.ops.fastgan.mlp(X, [torch.ones(3)], [None], [0], [0.0]),
    "unknown activation": lambda: torch.ops.fastgan.mlp(X, [W0], [None], [9], [0.0]),
    "more activations than weights": lambda: torch.ops.fastgan.mlp(X, [W0], [None], [0] * 5000, [0.0] * 5000),
    "long bias": lambda: torch.ops.fastgan.mlp(X, [W0], [torch.ones(5)], [0], [0.0]),
    "short gradient of the loss": lambda: torch.ops.fastgan.logits_loss_backward(
        torch.ones(2), [torch.ones(3)], 0, False, 0
    ),
    "unknown reduction": lambda: torch.ops.fastgan.logits_loss(X, 0, 1.0, 1.0, 7),
    "unknown term": lambda: torch.ops.fastgan.logits_loss(X, 4, 1.0, 1.0, 1),
    "negative term on meta": lambda: torch.ops.fastgan.logits_loss(X.to("meta"), -1, 1.0, 1.0, 1),
    "unknown term backward": lambda: torch.ops.fastgan.logits_loss_backward(ONE, [X], 4, False, 1),
    "pair of two shapes": lambda: torch.ops.fastgan.paired_loss(X, X[:5], 1.0, 1),
    "pair of two dtypes": lambda: torch.ops.fastgan.paired_loss(X, X.double(), 1.0, 1),
    "pair of one": lambda: torch.ops.fastgan.logits_loss_forward([X], 0, [1.0], 1.0, True, 1, True),
    "pair of another term": lambda: torch.ops.fastgan.logits_loss_forward([X, X], 1, [1.0], 1.0, True, 1, True),
    "fewer targets than logits": lambda: torch.ops.fastgan.logits_loss_forward([X, X], 0, [1.0], 1.0, False, 1, True),
    "short cotangent": lambda: loss_double_backward([X[:5]]),
    "no cotangent": lambda: loss_double_backward([]),
    "cotangent of another dtype": lambda: loss_double_backward([X.double()]),
    "two gradients of one loss": lambda: loss_double_backward([X], grad=torch.ones(2)),
    "one gradient of many losses": lambda: loss_double_backward([X], reduction=0),
    "short target": lambda: torch.ops.fastgan.bce_with_logits(X, torch.ones(6), None, None, 1),
}


@pytest.mark.parametrize("call", BAD.values(), ids=BAD)
def test_wrong_arguments_are_an_error(call) -> None:
    with pytest.raises((RuntimeError, IndexError)):
        call()


def test_tangents_are_refused_not_dropped() -> None:
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(X, torch.ones_like(X))
        with pytest.raises(RuntimeError, match="no forward-mode derivative"):
            torch.ops.fastgan.logits_loss(dual, 0, 1.0, 1.0, 1)
        with pytest.raises(RuntimeError, match="no forward-mode derivative"):
            torch.ops.fastgan.mlp(dual, WEIGHTS, BIASES, CALL, SLOPES)
