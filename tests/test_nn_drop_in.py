"""What users do to a Sequential beyond the ordinary: an MLP or a fused module answers as torch's does."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conformance import assert_close_in_float64, assert_within_bound, in_double
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

from fastgan.nn import MLP, FusedSequential, fuse, unfuse

pytestmark = pytest.mark.usefixtures("backend")


class Critic(MLP):
    """A subclass of MLP with a forward of its own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).squeeze(-1)


class Backwards(nn.Sequential):
    """A Sequential that runs its modules from the last to the first."""

    def __iter__(self) -> Iterator[nn.Module]:
        return reversed(list(self._modules.values()))


class Reduced(nn.Sequential):
    """A Sequential that is pickled in its own way."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(self)


def twins() -> tuple[MLP, nn.Sequential]:
    ours = MLP([4, 6, 2], "silu")
    torchs = nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 2))
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs


def with_exact(ours: nn.Module, torchs: nn.Module, input: torch.Tensor) -> list[tuple[nn.Module, torch.Tensor]]:
    """Ours, torch's and torch's in float64, each with its input."""
    return [(ours, input), (torchs, input), (in_double(torchs), input.double())]


INPUTS: dict[str, Callable[[], torch.Tensor]] = {
    "sparse": lambda: torch.eye(3, 4).to_sparse(),
    "sparse rows": lambda: torch.eye(3, 4).to_sparse_csr(),
    "jagged": lambda: torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)], layout=torch.jagged),
}


@pytest.mark.filterwarnings("ignore:.*(nested tensors|Sparse CSR).*:UserWarning")
@pytest.mark.parametrize("name", INPUTS)
def test_inputs_of_other_layouts(name) -> None:
    input = INPUTS[name]()
    ours, torchs = twins()
    results = [module(given) for module, given in with_exact(ours, torchs, input)]
    if input.is_nested:
        results = [result.unbind() for result in results]
    assert_within_bound(*results)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("record", ["jit.trace", "fx", "export"])
def test_graph_recorders(record) -> None:
    ours, torchs = twins()
    input, other = torch.randn(3, 4), torch.randn(3, 4)
    if record == "jit.trace":
        recorded: Callable[[torch.Tensor], torch.Tensor] = torch.jit.trace(ours, input)
    elif record == "fx":
        recorded = torch.fx.symbolic_trace(ours)
    else:
        recorded = torch.export.export(ours, (input,)).module()
    assert_within_bound(*(module(given) for module, given in with_exact(recorded, torchs, other)))


def test_checkpointing_and_keywords() -> None:
    input = torch.randn(3, 4)
    results = []
    for module, given in with_exact(*twins(), input):
        at = given.clone().requires_grad_()
        output = checkpoint_sequential(module, 2, at, use_reentrant=False)
        results.append([output, *torch.autograd.grad(output.sum(), [at, *module.parameters()]), module(input=at)])
    assert_within_bound(*results)


def test_inference_mode_and_tensor_subclasses() -> None:
    class Tagged(torch.Tensor):
        pass

    ours, torchs = twins()
    input = torch.randn(3, 4)
    with torch.inference_mode():
        assert ours(input).is_inference()
    for module in (ours, torchs):
        assert type(module(input.as_subclass(Tagged))) is Tagged


def test_integers_of_numpy_are_sizes() -> None:
    assert [p.shape for p in MLP(np.array([4, 3, 1])).parameters()] == [(3, 4), (3,), (1, 3), (1,)]
    with pytest.raises(TypeError, match=r"sizes\[0\] must be an integer, not float64"):
        MLP(np.array([4.0, 3.0]))


def test_a_subclass_of_mlp_keeps_its_own_forward() -> None:
    module, input = Critic([4, 6, 1], dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    expected = nn.Sequential(*module)(input).squeeze(-1)
    for change in (fuse, unfuse, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))):
        changed = change(module)
        assert type(changed) is Critic
        assert_close_in_float64(changed(input), expected)
    inner = nn.Sequential(module, MLP([3, 2]))
    assert [type(m) for m in unfuse(inner)] == [Critic, nn.Sequential]


def test_an_order_of_its_own_is_kept() -> None:
    module = Backwards(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    input = torch.randn(3, 4, dtype=torch.float64)
    module[0].weight.data *= 3
    expected = module(input)
    assert not torch.allclose(expected, nn.Sequential(*module._modules.values())(input))
    assert_close_in_float64(fuse(module)(input), expected)


def test_a_class_that_pickles_in_its_own_way_is_left_alone() -> None:
    module = fuse(nn.Sequential(Reduced(nn.Linear(4, 4), nn.ReLU())))
    assert type(module) is FusedSequential
    assert type(module[0]) is Reduced
    input = torch.randn(3, 4)
    assert torch.equal(pickle.loads(pickle.dumps(module))(input), module(input))
