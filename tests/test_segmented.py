"""fastgan.functional.segmented_activation and fastgan.nn.SegmentedActivation."""

from __future__ import annotations

import pytest
import torch
from conformance import assert_same_values
from torch import Tensor

from fastgan import functional
from fastgan.nn import SegmentedActivation

pytestmark = pytest.mark.usefixtures("backend")

WIDTHS = [1, 5, 1, 3, 2, 4]
KINDS = ["tanh", "gumbel_softmax", "softmax", "softmax", "identity", "gumbel_softmax"]


def as_ctgan_writes_it(x: Tensor, noise: Tensor | None, widths=WIDTHS, kinds=KINDS, tau: float = 0.2) -> Tensor:
    """One op a segment, as CTGAN's Generator does."""
    pieces, at, drawn = [], 0, 0
    for width, kind in zip(widths, kinds, strict=True):
        piece = x[..., at : at + width]
        at += width
        if kind == "gumbel_softmax":
            piece = torch.softmax((piece + noise[..., drawn : drawn + width]) / tau, -1)
            drawn += width
        pieces.append({"tanh": torch.tanh, "softmax": lambda p: p.softmax(-1)}.get(kind, lambda p: p)(piece))
    return torch.cat(pieces, -1)


def test_seed_reproduces_and_nothing_is_drawn_in_vain() -> None:
    x = torch.randn(6, 16)
    torch.manual_seed(3)
    first = functional.segmented_activation(x, WIDTHS, KINDS)
    torch.manual_seed(3)
    assert_same_values(functional.segmented_activation(x, WIDTHS, KINDS), first)
    assert not torch.equal(functional.segmented_activation(x, WIDTHS, KINDS), first)
    state = torch.get_rng_state()
    functional.segmented_activation(x, [16], ["softmax"])
    functional.segmented_activation(x, WIDTHS, KINDS, noise=torch.zeros(6, 9))
    assert torch.equal(torch.get_rng_state(), state)


def test_module_samples_in_eval_too() -> None:
    module = SegmentedActivation(WIDTHS, KINDS, tau=0.5).eval()
    x = torch.randn(6, 16)
    assert not torch.equal(module(x), module(x))
    noise = torch.randn(6, 9)
    assert_same_values(module(x, noise), functional.segmented_activation(x, WIDTHS, KINDS, tau=0.5, noise=noise))
    assert "tau=0.5" in repr(module)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"widths": [1, 5, 1, 3, 2]}, ValueError, "kinds must have one entry for each of the 5 widths, not 6"),
        ({"widths": [1, 5, 1, 3, 2, 0]}, ValueError, r"widths\[5\] must be at least 1, not 0"),
        ({"widths": [1, 5, 1, 3, 2, 4.0]}, TypeError, r"widths\[5\] must be an integer, not float 4.0"),
        ({"widths": [1, 5, 1, 3, 2, 5]}, RuntimeError, r"input of shape \(6, 16\) must have 17 columns"),
        ({"widths": 16, "kinds": ["tanh"]}, TypeError, "widths must be a list with one entry a segment, not int 16"),
        ({"widths": [], "kinds": []}, ValueError, "widths must name at least one segment"),
        ({"kinds": "tanh"}, TypeError, "kinds must be a list with one entry a segment, not str 'tanh'"),
        ({"kinds": [*KINDS[:5], "relu"]}, ValueError, r"kinds\[5\] must be one of tanh, .*, not 'relu'"),
        ({"tau": 0.0}, ValueError, "tau must be finite and greater than 0, not 0.0"),
        ({"tau": "1"}, TypeError, "tau must be a number, not str '1'"),
        ({"input": torch.zeros(6, 16).long()}, RuntimeError, "input must have a floating-point dtype"),
        ({"input": torch.tensor(1.0)}, RuntimeError, r"input of shape \(\) must have 16 columns"),
        ({"noise": torch.zeros(6, 16)}, RuntimeError, r"noise of shape \(6, 16\) must have shape \(6, 9\)"),
        ({"noise": torch.zeros(6, 9).long()}, RuntimeError, "noise must have a floating-point dtype"),
        ({"noise": torch.zeros(6, 9, device="meta")}, RuntimeError, "noise must be on the same device as input"),
        ({"noise": [0.0]}, TypeError, "noise must be a Tensor, not list"),
    ],
)
def test_refusals(change, error, says) -> None:
    call = {"input": torch.zeros(6, 16), "widths": WIDTHS, "kinds": KINDS} | change
    with pytest.raises(error, match=says):
        functional.segmented_activation(call.pop("input"), call.pop("widths"), call.pop("kinds"), **call)


def test_module_refuses_at_once() -> None:
    with pytest.raises(ValueError, match="tau"):
        SegmentedActivation([1], ["tanh"], tau=-1.0)
    with pytest.raises(ValueError, match=r"kinds\[0\]"):
        SegmentedActivation([1], ["Tanh"])
