"""What autograd offers around any op: saved tensors, checkpoints, hooks, modes, threads; on every backend."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from conformance import assert_close_in_float64, assert_within_bound
from ops import OPS, Op
from torch import Tensor
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.usefixtures("backend")
every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS)


def leaves(op: Op, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [t.requires_grad_() for t in op.inputs(dtype)]


def gradients(value: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """In which every element of the value counts differently."""
    cotangent = torch.linspace(1.0, 2.0, value.numel(), dtype=value.dtype).view(value.shape)
    return torch.autograd.grad(value, inputs, cotangent)


@every_op
def test_each_input_alone_can_require_grad(op: Op) -> None:
    given = op.inputs()
    for wanted in range(len(given)):
        results = []
        for function in (op.ours, op.torchs):
            inputs = [t.clone().requires_grad_(i == wanted) for i, t in enumerate(given)]
            function(*inputs).sum().backward()
            assert [t.grad is not None for t in inputs] == [i == wanted for i in range(len(given))]
            results.append(inputs[wanted].grad)
        assert_close_in_float64(*results)


@every_op
def test_nothing_is_recorded_where_nothing_requires_grad(op: Op) -> None:
    assert op.ours(*op.inputs()).grad_fn is None
    with torch.no_grad():
        assert not op.ours(*leaves(op)).requires_grad


@every_op
def test_recording_does_not_change_the_bits(op: Op) -> None:
    inputs = leaves(op, torch.float32)
    recorded = op.ours(*inputs)
    with torch.no_grad():
        assert torch.equal(op.ours(*inputs), recorded)
    with torch.inference_mode():
        assert torch.equal(op.ours(*inputs), recorded)


@every_op
def test_backward_frees_and_retain_graph_keeps(op: Op) -> None:
    inputs = leaves(op)
    value = op.ours(*inputs).sum()
    first = torch.autograd.grad(value, inputs, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(value, inputs), strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(value, inputs)


@every_op
def test_changing_an_input_before_backward_is_an_error_as_in_torch(op: Op) -> None:
    """Or where torch has no need of the input, and so no error, the gradient is that of before."""
    errors = []
    inputs = leaves(op)
    for function in (op.torchs, op.ours):
        changed = inputs[0] * 1
        value = function(changed, *inputs[1:]).sum()
        changed.detach().add_(1)
        try:
            found = torch.autograd.grad(value, inputs)
        except RuntimeError as error:
            errors.append("modified by an inplace operation" in str(error))
        else:
            errors.append(None)
            assert_close_in_float64(found, torch.autograd.grad(op.torchs(*inputs).sum(), inputs))
    assert errors in ([True, True], [None, None], [None, True])


def test_changing_a_bias_before_backward_is_harmless_or_an_error(backend: str) -> None:
    """PyTorch's linear does not save its bias, so that all derivatives stay those of the value that was computed."""
    given = OPS["mlp"].inputs()

    def derivatives(function: Callable[..., Tensor]) -> list[Tensor]:
        inputs = [t.clone().requires_grad_() for t in given]
        value = function(*inputs).sum()
        inputs[3].detach().add_(1)  # the first layer's bias
        (first,) = torch.autograd.grad(value, inputs[0], create_graph=True)
        return [first, *torch.autograd.grad(first.square().sum(), inputs[0], create_graph=True)]

    expected = derivatives(OPS["mlp"].torchs)
    try:
        found = derivatives(OPS["mlp"].ours)
    except RuntimeError as error:
        message = str(error)
    else:
        assert_close_in_float64(found, expected)
        return
    assert "modified by an inplace operation" in message


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
@every_op
def test_backward_with_create_graph(op: Op) -> None:
    """Gradients that land in .grad with a graph of their own, the way of a gradient penalty by backward()."""
    given, results = op.inputs(), []
    for function in (op.ours, op.torchs):
        inputs = [t.clone().requires_grad_() for t in given]
        function(*inputs).square().sum().backward(create_graph=True)
        first = [t.grad for t in inputs]
        assert all(g.requires_grad for g in first)
        results.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), inputs)])
        for t in inputs:
            t.grad = None  # else tensor and gradient keep each other alive
    assert_close_in_float64(*results)


@every_op
def test_an_input_that_depends_on_another(op: Op) -> None:
    """Every input a function of one tensor: no gradient is lost or counted twice, to the second order."""
    given, results = op.inputs(), []
    for function in (op.ours, op.torchs):
        scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        value = function(*(t * scale.pow(i + 1) for i, t in enumerate(given))).square().sum()
        (first,) = torch.autograd.grad(value, scale, create_graph=True)
        results.append((first, *torch.autograd.grad(first, scale)))
    assert_close_in_float64(*results)


@every_op
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(op: Op, use_reentrant: bool) -> None:
    given, results = op.inputs(), []
    for function in (lambda *x: checkpoint(op.ours, *x, use_reentrant=use_reentrant), op.torchs):
        inputs = [t.clone().requires_grad_() for t in given]
        function(*inputs).sum().backward()
        results.append([t.grad for t in inputs])
    assert_close_in_float64(*results)


@every_op
def test_saved_tensors_pass_through_hooks(op: Op) -> None:
    """So that torch.autograd.graph.save_on_cpu and offloading libraries see all that an op keeps."""
    inputs, packed = leaves(op), []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = op.ours(*inputs)
        kept = len(packed)
        op.torchs(*inputs)
    assert kept or not packed  # a linear loss has nothing to keep
    assert_close_in_float64(gradients(value, inputs), gradients(op.torchs(*inputs), inputs))


@every_op
def test_no_reference_cycle_keeps_tensors(op: Op) -> None:
    """What a step made is freed as soon as it is dropped, without waiting for the garbage collector."""
    inputs = leaves(op)
    copies = [t * 1 for t in inputs]
    value = op.ours(*copies)
    first = torch.autograd.grad(value.sum(), copies, create_graph=True)
    seed = sum(g.square().sum() for g in first)
    # A linear loss has no second derivative.
    second = torch.autograd.grad(seed, inputs, create_graph=True) if seed.requires_grad else ()
    alive = [weakref.ref(t) for t in (*copies, value, *first, seed, *second)]
    del copies, value, first, seed, second
    assert not [t for t in alive if t() is not None]


@every_op
def test_negated_views(op: Op) -> None:
    """Tensors whose sign is a bit, not data: the imaginary part of a conjugate."""

    def negated_view(t: Tensor) -> Tensor:
        view = torch.complex(torch.zeros_like(t), -t).conj().imag
        assert view.is_neg()
        return view

    inputs = leaves(op)
    expected = op.torchs(*inputs)
    for i in range(len(inputs)):
        views = [negated_view(t) if j == i else t for j, t in enumerate(inputs)]
        assert_close_in_float64(op.ours(*views), expected)
    cotangent = torch.ones_like(expected)
    assert_close_in_float64(
        torch.autograd.grad(op.ours(*inputs), inputs, negated_view(cotangent)),
        torch.autograd.grad(expected, inputs, cotangent),
    )


@every_op
def test_tensor_subclasses_keep_their_type(op: Op) -> None:
    class Tagged(Tensor):
        pass

    plain = op.inputs()
    tagged = op.ours(plain[0].as_subclass(Tagged), *plain[1:])
    assert type(tagged) is Tagged
    assert_close_in_float64(tagged.as_subclass(Tensor), op.torchs(*plain))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {"sparse": Tensor.to_sparse, "mkldnn": Tensor.to_mkldnn}


@every_op
@pytest.mark.parametrize("convert", LAYOUTS.values(), ids=LAYOUTS)
def test_other_layouts_end_as_in_torch(op: Op, convert: Callable[[Tensor], Tensor]) -> None:
    """Computed where PyTorch computes them, refused where it does not; never read as if dense."""
    dense = op.inputs(torch.float32)
    if dense[0].is_cuda and convert is Tensor.to_mkldnn:
        pytest.skip("PyTorch has this layout on the CPU alone")
    inputs = [convert(dense[0]), *dense[1:]]
    try:
        expected = op.torchs(*inputs).to_dense()
    except RuntimeError as error:
        with pytest.raises(type(error)):
            op.ours(*inputs)
    else:
        assert_within_bound(op.ours(*inputs).to_dense(), expected, op.torchs(*(t.double() for t in dense)))


@every_op
def test_several_threads_at_once(op: Op) -> None:
    inputs = leaves(op)
    expected, found = gradients(op.torchs(*inputs), inputs), []
    device = torch.get_default_device()  # which is each thread's own

    def work() -> None:
        with torch.device(device):
            for _ in range(20):
                found.append(gradients(op.ours(*inputs), inputs))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    assert all(torch.equal(a, b) for result in found for a, b in zip(result, found[0], strict=True))
    assert_close_in_float64(found[0], expected)


@every_op
def test_anomaly_mode_finds_nothing(op: Op) -> None:
    inputs = leaves(op)
    with torch.autograd.set_detect_anomaly(True, check_nan=True):
        op.ours(*inputs).sum().backward()
    assert all(t.grad.isfinite().all() for t in inputs)
