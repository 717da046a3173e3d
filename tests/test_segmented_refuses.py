"""What a segmented activation refuses, in which words; and what its compiled op does."""

from __future__ import annotations

import pytest
import torch
from conformance import DTYPES, here

from fastgan import backend as fastgan_backend
from fastgan import functional, reference
from fastgan.nn import SegmentedActivation

WIDTHS = [1, 5, 1, 3, 2, 4]
KINDS = ["tanh", "gumbel_softmax", "softmax", "softmax", "identity", "gumbel_softmax"]


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
def test_refusals(backend: str, change, error, says) -> None:
    call = {"input": torch.zeros(6, 16), "widths": WIDTHS, "kinds": KINDS} | here(change)
    with pytest.raises(error, match=says):
        functional.segmented_activation(call.pop("input"), call.pop("widths"), call.pop("kinds"), **call)


def test_module_refuses_at_once(backend: str) -> None:
    with pytest.raises(ValueError, match="tau"):
        SegmentedActivation([1], ["tanh"], tau=-1.0)
    with pytest.raises(ValueError, match=r"kinds\[0\]"):
        SegmentedActivation([1], ["Tanh"])


def test_tables_agree(compiled: None) -> None:
    assert tuple(fastgan_backend.module.segment_kinds()) == reference.SEGMENT_KINDS


def test_op_refuses_what_it_cannot_run(compiled: None) -> None:
    op = torch.ops.fastgan.segmented_activation
    x = torch.zeros(2, 3)
    for arguments, says in (
        ((x, None, [3], [3], 0.2), "noise must be given for the 3 gumbel_softmax columns"),
        ((x, torch.zeros(2, 2), [3], [3], 0.2), "noise of shape"),
        ((x, torch.zeros(2, 3).double(), [3], [3], 0.2), "must have shape"),
        ((x, None, [3], [7], 0.2), "kinds"),
        ((x, None, [2], [0], 0.2), "must have 2 columns"),
        ((x, None, [3, 0], [0, 0], 0.2), "must be at least 1"),
        ((x, None, [3], [0, 0], 0.2), "same number of entries"),
        ((x, None, [3], [0], 0.0), "tau must be greater than 0"),
    ):
        with pytest.raises(RuntimeError, match=says):
            op(*arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(compiled: None, dtype: torch.dtype) -> None:
    """Schemas, autograd registration, and Meta kernels with static and with dynamic shapes."""
    ops, call = torch.ops.fastgan, (WIDTHS, [reference.SEGMENT_KINDS.index(kind) for kind in KINDS], 0.3)
    wide = reference.arithmetic_dtype(dtype)
    x = torch.randn(7, 16).to(dtype)
    for input in (x.clone().requires_grad_(), x.t().contiguous().t(), torch.randn(2, 3, 16).to(dtype)):
        noise = torch.randn(*input.shape[:-1], 9).to(wide)
        torch.library.opcheck(ops.segmented_activation.default, (input, noise, *call))
    torch.library.opcheck(ops.segmented_activation.default, (x, None, [16], [2], 0.2))
    output, (gradient, cotangent) = x.softmax(-1), torch.randn(2, 7, 16).to(dtype)
    for op, given in (
        (ops.segmented_activation_backward, (gradient, output)),
        (ops.segmented_activation_double_backward, (cotangent, gradient, output)),
    ):
        torch.library.opcheck(op.default, (*given, *call), test_utils=("test_schema", "test_faketensor"))
