"""Inputs of every kind: the engine gives what the composed step gives, a result or the same error, never a crash."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conformance import assert_close_in_float64
from conftest import run_on_or_skip
from surgery import BATCH, DATA, LATENT, networks, run, trainer
from torch import Tensor, nn

NATIVE = "the whole step as one native call"


@pytest.fixture(params=("auto", "cpu", "reference", "simt"))
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    with run_on_or_skip(request.param) as name:
        yield name


def real(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(
        *(shape or (BATCH, DATA)), generator=torch.Generator(torch.get_default_device()).manual_seed(8), dtype=dtype
    )


class Own(Tensor):
    """A subclass with nothing of its own."""


class Doubling(Tensor):
    """A subclass that computes something else."""

    @classmethod
    def __torch_function__(cls, function: Any, kinds: Any, arguments: Any = (), options: Any = None) -> Any:
        result = super().__torch_function__(function, kinds, arguments, options or {})
        return result * 2 if function is nn.functional.linear else result


def masked() -> Tensor:
    from torch.masked import masked_tensor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return masked_tensor(real(), torch.ones(BATCH, DATA, dtype=torch.bool))


def fake() -> Tensor:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        return torch.randn(BATCH, DATA, dtype=torch.float64)


def inference() -> Tensor:
    with torch.inference_mode():
        return real() * 1


def nested() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([real(DATA), real(DATA)])


def quantized() -> Tensor:
    return torch.quantize_per_tensor(real(dtype=torch.float32), 0.1, 0, torch.qint8)


REAL: dict[str, Callable[[], Any]] = {
    "plain": real,
    "parameter": lambda: nn.Parameter(real()),
    "requires grad": lambda: real().requires_grad_(),
    "computed": lambda: real().requires_grad_() * 2,
    "transposed": lambda: real(DATA, BATCH).t(),
    "every other": lambda: real(2 * BATCH, 2 * DATA)[::2, ::2],
    "expanded": lambda: real(1, DATA).expand(BATCH, DATA),
    "negative bit": lambda: torch.view_as_complex(torch.stack([real(), real()], 2)).conj().imag,
    "zeros without memory": lambda: torch._efficientzerotensor((BATCH, DATA), dtype=torch.float64),
    "meta": lambda: real().to("meta"),
    "masked": masked,
    "fake": fake,
    "inference": inference,
    "nested": nested,
    "quantized": quantized,
    "sparse": lambda: real().to_sparse(),
    "sparse csr": lambda: real().to_sparse_csr(),
    "subclass": lambda: real().as_subclass(Own),
    "subclass that doubles": lambda: real().as_subclass(Doubling),
    "float32": lambda: real(dtype=torch.float32),
    "bfloat16": lambda: real(dtype=torch.bfloat16),
    "complex": lambda: real().to(torch.complex128),
    "integers": lambda: torch.ones(BATCH, DATA, dtype=torch.int64),
    "no rows": lambda: real(0, DATA),
    "one row": lambda: real(1, DATA),
    "too wide": lambda: real(BATCH, DATA + 1),
    "no columns": lambda: real(BATCH, 0),
    "a vector": lambda: real(DATA),
    "four dimensions": lambda: real(1, 1, BATCH, DATA),
    "one for two": lambda: real(1, BATCH, DATA),
    "two": lambda: real(2, BATCH, DATA),
    "three": lambda: real(3, BATCH, DATA),
    "numpy": lambda: real().numpy(),
    "list": lambda: real().tolist(),
    "None": lambda: None,
}


def result(step: Any, *inputs: Any) -> tuple[list[Tensor], str]:
    error = ""
    before = torch.random.get_rng_state()
    try:
        step.step(*inputs)
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
        torch.random.set_rng_state(before)
    tensors = [t for m in (step.generator, step.discriminator, step.ema) for t in m.state_dict().values()]
    return [t.detach().clone() for t in tensors], error


def no_batch_norm() -> tuple[nn.Sequential, nn.Sequential]:
    generator, discriminator = networks()
    generator[1] = nn.Identity()
    return generator, discriminator


def assert_alike(make: Callable[[], Any], given: Callable[[Any], tuple[Any, ...]]) -> str:
    """Two steps, the first of them with usual inputs or not, by the engine and composed."""
    for first in (True, False):
        seen = []
        for way in ("engine", "composed"):
            step = make(way)
            if not first:
                run(step, 1, 5) if step.d_steps == 1 else step.step(real(), None, real(3, BATCH, LATENT))
            torch.manual_seed(9)
            seen.append(result(step, *given(step)))
        (ours, error), (theirs, expected) = seen
        assert error == expected
        for a, b in zip(ours, theirs, strict=True):
            assert_close_in_float64(a, b, 1e-9)
    return error


@pytest.mark.deep_on("reference")  # which has no engine
@pytest.mark.parametrize("d_steps", [1, 2])
@pytest.mark.parametrize("kind", REAL)
def test_real(place: str, kind: str, d_steps: int) -> None:
    assert_alike(lambda way: trainer(way, d_steps=d_steps), lambda step: (REAL[kind](),))


@pytest.mark.deep_on("reference")
@pytest.mark.parametrize("kind", REAL)
def test_noise(place: str, kind: str) -> None:
    def noise() -> Any:
        made = REAL[kind]()
        try:
            return torch.stack([made, made])[..., :LATENT]
        except Exception:
            return made

    # Without BatchNorm, which scales up the rounding of rows that are all alike.
    assert_alike(lambda way: trainer(way, networks=no_batch_norm), lambda step: (real(), None, noise()))


@pytest.mark.parametrize("what", ["weight", "average", "state"])
def test_real_in_the_memory_that_a_step_writes(place: str, what: str) -> None:
    """Its first rows are D's weight, the average's or Adam's."""

    def given(step: Any) -> tuple[Any, ...]:
        if what == "state" and not step.d_optimizer.state:
            return (real(),)
        weight = step.discriminator[0].weight
        held = {"weight": weight, "average": step.ema[3].weight.view(16, DATA)}
        tensor = held[what] if what in held else step.d_optimizer.state[weight]["exp_avg"]
        return (tensor.detach()[:BATCH], None, real(2, BATCH, LATENT))

    assert_alike(lambda way: trainer(way), given)


def test_a_plan_serves_what_it_can(place: str) -> None:
    if place == "reference":
        pytest.skip("the reference has no engine")
    for kind in ("plain", "parameter", "requires grad", "transposed", "every other", "expanded"):
        step = trainer("engine")
        step._composed_step = None
        step.step(REAL[kind]())
        assert step.plan.startswith(NATIVE)
