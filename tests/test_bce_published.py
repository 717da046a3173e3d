"""fastgan.nn.BCEWithLogitsLoss held to what PyTorch documents and tests of torch.nn.BCEWithLogitsLoss.

https://docs.pytorch.org/docs/stable/generated/torch.nn.BCEWithLogitsLoss.html
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from conformance import REDUCTIONS, assert_close_in_float64, assert_within_bound
from torch import nn

import fastgan
from fastgan.nn import BCEWithLogitsLoss

pytestmark = pytest.mark.usefixtures("backend")

HALVES = (torch.float16, torch.bfloat16)


def logits_and_targets(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(shape, dtype=dtype, requires_grad=True), torch.rand(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("input_shape", "target_shape"),
    [((5, 1), (5,)), ((5,), (5, 1)), ((5, 1), (1, 5)), ((4,), (5,)), ((), (1,)), ((1,), ()), ((0, 3), (3, 0))],
)
def test_sizes_that_differ_raise_though_they_broadcast(input_shape, target_shape) -> None:
    input, target = torch.rand(input_shape), torch.rand(target_shape)
    for loss in (nn.BCEWithLogitsLoss(), BCEWithLogitsLoss()):
        with pytest.raises(ValueError, match=r"size|shape"):
            loss(input, target)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(), (1,), (64,), (64, 4), (3, 5, 7)])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_sigmoid_and_bce_loss(reduction, shape, weighted) -> None:
    logits, target = logits_and_targets(*shape)
    weight = torch.rand(shape[-1:], dtype=torch.float64) if weighted else None
    ours = BCEWithLogitsLoss(weight, reduction=reduction)(logits, target)
    composed = nn.BCELoss(weight, reduction=reduction)(logits.sigmoid(), target)
    assert_close_in_float64(ours, composed)
    upstream = torch.randn_like(ours)
    assert_close_in_float64(*(torch.autograd.grad(v, logits, upstream)[0] for v in (ours, composed)))


@pytest.mark.parametrize("pos_weight", [None, 1.0, 3.0])
@pytest.mark.parametrize("target", [0.0, 0.25, 1.0])
def test_gradient_at_zero_has_no_kink(target, pos_weight) -> None:
    logits = torch.zeros(3, 1, requires_grad=True)
    weights = None if pos_weight is None else torch.tensor([pos_weight])
    loss = BCEWithLogitsLoss(pos_weight=weights, reduction="sum")(logits, torch.full((3, 1), target))
    loss.backward()
    # d/dx at 0 of (1 - t) softplus(x) + p t softplus(-x), where softplus' is 1/2
    slope = 0.5 * ((1 - target) - (pos_weight or 1.0) * target)
    assert torch.equal(logits.grad, torch.full((3, 1), slope))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weights", ["none", "weight", "pos_weight", "both"])
def test_gradients_pass_gradcheck(reduction, weights) -> None:
    logits, target = logits_and_targets(6, 3)
    weight = torch.rand(3, dtype=torch.float64) if weights in ("weight", "both") else None
    pos_weight = torch.rand(3, dtype=torch.float64) + 0.5 if weights in ("pos_weight", "both") else None
    loss = BCEWithLogitsLoss(weight, reduction=reduction, pos_weight=pos_weight)
    target.requires_grad_()
    assert torch.autograd.gradcheck(loss, (logits, target), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, (logits, target))


@pytest.mark.parametrize("name", ["weight", "pos_weight"])
@pytest.mark.parametrize("shape", [(), (1,), (4,), (16, 1), (1, 4), (16, 4)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_broadcast_weight_equals_the_expanded_one(name, shape, reduction) -> None:
    logits, target = logits_and_targets(16, 4)
    narrow = torch.rand(shape, dtype=torch.float64)
    wide = narrow.expand(16, 4).contiguous()
    narrow_loss, wide_loss = (
        BCEWithLogitsLoss(**{name: value}, reduction=reduction)(logits, target) for value in (narrow, wide)
    )
    plain = nn.BCEWithLogitsLoss(**{name: wide}, reduction=reduction)(logits, target)
    assert_close_in_float64(narrow_loss, wide_loss)
    assert_close_in_float64(wide_loss, plain)
    upstream = torch.randn_like(plain)
    gradients = [torch.autograd.grad(v, logits, upstream)[0] for v in (narrow_loss, wide_loss, plain)]
    assert_close_in_float64(gradients[0], gradients[1])
    assert_close_in_float64(gradients[1], gradients[2])


@pytest.mark.parametrize("name", ["weight", "pos_weight"])
@pytest.mark.parametrize("shape", [(3,), (4, 1), (16, 3), (1, 16, 4), (0,)])
def test_a_weight_that_does_not_broadcast_raises(name, shape) -> None:
    logits, target = logits_and_targets(16, 4)
    with pytest.raises(RuntimeError, match=f"^{name} of shape"):
        BCEWithLogitsLoss(**{name: torch.ones(shape, dtype=torch.float64)})(logits, target)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_pos_weight_of_ones_equals_none(reduction) -> None:
    logits, target = logits_and_targets(64, 4)
    ones = BCEWithLogitsLoss(pos_weight=torch.ones(4, dtype=torch.float64), reduction=reduction)
    assert_close_in_float64(ones(logits, target), BCEWithLogitsLoss(reduction=reduction)(logits, target))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
@pytest.mark.parametrize("pos_weight", [None, 2.0])
@pytest.mark.parametrize("magnitude", [100.0, 1e4])
def test_is_stable_for_large_logits(dtype, pos_weight, magnitude) -> None:
    """sigmoid + BCELoss saturates at 100 here; the exact loss is |x| where the logit is wrong, 0 where it is right."""
    logits = torch.tensor([magnitude, -magnitude, magnitude, -magnitude], dtype=dtype, requires_grad=True)
    target = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=dtype)
    p = 1.0 if pos_weight is None else pos_weight
    weights = None if pos_weight is None else torch.tensor([p], dtype=dtype)
    loss = BCEWithLogitsLoss(pos_weight=weights, reduction="none")(logits, target)
    size = logits.detach()[0].item()  # magnitude as the dtype holds it
    # The exact remainder is exp(-100) or less, 4e-44; float32 holds it as a subnormal number or not at all.
    assert_close_in_float64(loss.detach().double(), torch.tensor([0.0, 0.0, size, p * size]).double(), bound=1e-43)
    loss.sum().backward()
    assert_close_in_float64(logits.grad.double(), torch.tensor([0.0, 0.0, 1.0, -p]).double(), bound=1e-43)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
def test_non_finite_logits_propagate_as_in_torch(value, target) -> None:
    logits, targets = torch.tensor([value, 0.5]), torch.tensor([target, 1.0])
    ours, torchs = (kind(reduction="none")(logits, targets) for kind in (BCEWithLogitsLoss, nn.BCEWithLogitsLoss))
    exact = nn.BCEWithLogitsLoss(reduction="none")(logits.double(), targets.double())
    assert_within_bound(ours, torchs, exact)


@pytest.mark.parametrize("reduction", ["average", "", "MEAN", None, 1])
def test_an_unknown_reduction_raises_when_called(reduction) -> None:
    for kind in (nn.BCEWithLogitsLoss, BCEWithLogitsLoss):
        loss = kind(reduction=reduction)  # torch accepts it here
        with pytest.raises(ValueError, match=r"reduction|not a valid value"):
            loss(torch.zeros(2), torch.zeros(2))


@pytest.mark.parametrize("size_average", [None, True, False])
@pytest.mark.parametrize("reduce", [None, True, False])
@pytest.mark.parametrize("functional", [False, True])
def test_size_average_and_reduce_mean_what_they_did(size_average, reduce, functional) -> None:
    logits, target = logits_and_targets(8, 2)
    flags = {"size_average": size_average, "reduce": reduce}
    results, messages = [], []
    for kind, function in (
        (nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits),
        (BCEWithLogitsLoss, fastgan.functional.binary_cross_entropy_with_logits),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results.append(function(logits, target, **flags) if functional else kind(**flags)(logits, target))
        messages.append([(w.category, str(w.message)) for w in caught])
    assert_close_in_float64(*results)
    assert len(messages[0]) == (0 if size_average is None and reduce is None else 1)
    assert [category for category, _ in messages[1]] == [category for category, _ in messages[0]]
    for _, message in messages[1]:
        assert "size_average and reduce" in message


def test_the_warning_of_deprecated_flags_points_at_the_caller():
    logits, target = logits_and_targets(8, 2)
    with pytest.warns(UserWarning, match="size_average and reduce") as caught:
        fastgan.functional.binary_cross_entropy_with_logits(logits, target, size_average=False)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0)])
def test_scalar_and_empty_inputs(shape, reduction) -> None:
    logits, target = logits_and_targets(*shape)
    ours, torchs = (kind(reduction=reduction)(logits, target) for kind in (BCEWithLogitsLoss, nn.BCEWithLogitsLoss))
    assert_close_in_float64(ours, torchs)
    gradients = [torch.autograd.grad(v, logits, torch.ones_like(v))[0] for v in (ours, torchs)]
    assert_close_in_float64(*gradients)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": lambda module: torch.load(_saved(module), weights_only=False),
}


def _saved(module: nn.Module) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("copier", COPIES)
def test_copies_keep_the_weights_and_the_reduction(copier) -> None:
    loss = BCEWithLogitsLoss(torch.rand(4).double(), reduction="sum", pos_weight=torch.rand(4).double())
    twin = COPIES[copier](loss)
    assert type(twin) is BCEWithLogitsLoss
    assert twin.weight is not loss.weight
    logits, target = logits_and_targets(8, 4)
    assert torch.equal(twin(logits, target), loss(logits, target))


def test_weights_are_buffers_that_cross_over_to_torchs_module() -> None:
    arguments = {"weight": torch.rand(4), "pos_weight": torch.rand(4)}
    ours, torchs = BCEWithLogitsLoss(**arguments), nn.BCEWithLogitsLoss(**arguments)
    assert [name for name, _ in ours.named_buffers()] == [name for name, _ in torchs.named_buffers()]
    assert list(ours.parameters()) == []
    blank = {name: torch.zeros(4) for name in arguments}
    for source, kind in ((ours, nn.BCEWithLogitsLoss), (torchs, BCEWithLogitsLoss)):
        receiver = kind(**blank)
        receiver.load_state_dict(source.state_dict(), strict=True)
        for name, value in arguments.items():
            assert torch.equal(getattr(receiver, name), value)
    assert BCEWithLogitsLoss().state_dict() == nn.BCEWithLogitsLoss().state_dict()


def test_repr_and_attributes_are_torchs() -> None:
    ours, torchs = BCEWithLogitsLoss(reduction="sum"), nn.BCEWithLogitsLoss(reduction="sum")
    assert repr(ours) == repr(torchs)
    assert ours.reduction == torchs.reduction
    assert isinstance(ours, nn.BCEWithLogitsLoss)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_to_a_dtype_moves_the_weights(dtype) -> None:
    weight, pos_weight = torch.rand(4).double(), torch.rand(4).double()
    ours, torchs = (kind(weight, pos_weight=pos_weight).to(dtype) for kind in (BCEWithLogitsLoss, nn.BCEWithLogitsLoss))
    assert ours.weight.dtype == ours.pos_weight.dtype == dtype
    logits, target = (x.detach() for x in logits_and_targets(16, 4, dtype=dtype))
    loss = ours(logits, target)
    assert loss.dtype == dtype
    exact = F.binary_cross_entropy_with_logits(
        *(x.double() for x in (logits, target, torchs.weight)), pos_weight=torchs.pos_weight.double()
    )
    error = abs(torchs(logits, target).double() - exact)
    assert abs(loss.double() - exact) <= 2 * error + 1e-6 + torch.finfo(dtype).eps * exact


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("logits_dtype", [torch.float32, *HALVES])
def test_autocast_computes_the_loss_as_torch_does(dtype, logits_dtype) -> None:
    logits, target = logits_and_targets(16, 4, dtype=logits_dtype)
    weight, pos_weight = torch.rand(4), torch.rand(4)
    results = []
    for kind in (BCEWithLogitsLoss, nn.BCEWithLogitsLoss):
        with torch.autocast(torch.get_default_device().type, dtype=dtype):
            loss = kind(weight, pos_weight=pos_weight)(logits, target.float())
        results.append((loss, *torch.autograd.grad(loss, logits)))
    wide = logits.detach().double().requires_grad_()
    loss = nn.BCEWithLogitsLoss(weight.double(), pos_weight=pos_weight.double())(wide, target.double())
    assert_within_bound(*results, (loss, *torch.autograd.grad(loss, wide)))
