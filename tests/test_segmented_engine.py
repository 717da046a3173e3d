"""The engine's step of a generator that ends in a SegmentedActivation, with and without the condition's
cross-entropy."""

from __future__ import annotations

import copy
import functools
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from allocations import assert_statistics_alone_are_allocated
from conformance import as_double, assert_close_in_float64, assert_within_bound, overall_error
from conftest import BACKENDS, run_on_or_skip
from extent import rest
from plain_step import adam, in_plain_torch, state_of
from rounded_linear import RoundedLinear
from segmented_steps import (
    BATCH,
    CLASSES,
    DATA,
    EVERY_CLASS,
    KINDS,
    LATENT,
    NATIVE,
    WIDTHS,
    Conditioned,
    InPlainTorch,
    inputs,
    networks,
    results,
    trainers,
)
from step_cases import FACTORS, SHIFT_INVARIANT, Case, all_pairs
from torch import Tensor, nn
from torch.optim import Adam

from fastgan import TrainStep, functional
from fastgan import backend as fastgan_backend
from fastgan.nn import MLP, SegmentedActivation

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 12
NAMES = ("loss", "penalty", "pac", "d_steps", "reuse_fake", "clip_grad_norm", "noise", "ema_decay", "dropout")
PAIRS = all_pairs(
    {
        **{name: FACTORS[name] for name in NAMES},
        "activation": ("leaky_relu", "tanh"),
        "num_classes": (0, CLASSES, EVERY_CLASS),
    }
)


@pytest.fixture(params=[name for name in BACKENDS if name in ("cpu", "simt", "cuda")])
def device_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with run_on_or_skip(request.param) as name:
        yield name


# Adam's epsilon is of the gradients' size: with the usual one, what rounding leaves of a zero is a full step.
steady = functools.partial(Adam, lr=2e-3, betas=(0.5, 0.999), eps=1e-2)


def pair_of(case: Case) -> tuple[nn.Sequential, nn.Sequential]:
    has_last_bias = case.loss not in SHIFT_INVARIANT
    return networks(case.num_classes, case.pac, case.activation, case.dropout, has_last_bias)


def options_of(case: Case) -> dict[str, Any]:
    return {**case.options(), "condition_weight": 0.7 if case.num_classes else 0.0}


@pytest.mark.usefixtures("device_backend")
@pytest.mark.deep_on("simt")
@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_all_pairs_follow_the_plain_loop(case: Case) -> None:
    options = options_of(case)
    ours, plain = trainers(pair_of(case), adam, **options)
    before = [value.clone() for value in state_of(ours)[:2]]
    given = lambda i: inputs(options)  # noqa: E731
    assert_close_in_float64(results(ours, STEPS, given), results(plain, STEPS, given), bound=1e-9)
    assert_close_in_float64(state_of(ours), state_of(plain), bound=1e-9)
    assert not any(map(torch.equal, before, state_of(ours)))
    assert ours.plan.startswith(NATIVE)


TABLES: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
    "one level": ((1,), ("gumbel_softmax",)),
    "nothing drawn": ((2, 40, 1), ("tanh", "softmax", "tanh")),
    "wider than a panel and than a sum": ((33, 1, 700, 2), ("gumbel_softmax", "tanh", "gumbel_softmax", "softmax")),
    "many runs": ((1, 2) * 40, ("tanh", "gumbel_softmax") * 40),
}


@pytest.mark.usefixtures("device_backend")
@pytest.mark.parametrize("batch", [1, 32, 100])
@pytest.mark.parametrize("name", TABLES)
def test_tables_of_other_widths(name: str, batch: int) -> None:
    widths, kinds = TABLES[name]
    data, drawn = sum(widths), sum(w for w, kind in zip(widths, kinds, strict=True) if kind == "gumbel_softmax")
    options = {"num_classes": drawn, "condition_weight": 0.5 if drawn else 0.0, "reuse_fake": True}
    pair = MLP([LATENT + drawn, 7, data], dtype=torch.float64), MLP([data + drawn, 6, 1], dtype=torch.float64)
    made = trainers(tuple(nn.Sequential(*network) for network in pair), adam, widths=widths, kinds=kinds, **options)
    given = lambda i: inputs(options, batch, data)  # noqa: E731
    assert_close_in_float64(*(results(trainer, 3, given) for trainer in made), bound=1e-9)
    assert_close_in_float64(*map(state_of, made), bound=1e-9)
    assert made[0].plan.startswith(NATIVE)


BETWEEN: dict[str, Callable[[], list[nn.Module]]] = {
    "activation before": lambda: [nn.Tanh()],
    "batch norm before": lambda: [nn.BatchNorm1d(DATA, dtype=torch.float64)],
    "dropout before": lambda: [nn.Dropout(0.3)],
    "frozen": lambda: [nn.Tanh()],
}


@pytest.mark.usefixtures("device_backend")
@pytest.mark.parametrize("name", BETWEEN)
@pytest.mark.parametrize("pac", [1, 2])
def test_what_is_before_the_segments(name: str, pac: int) -> None:
    options = {"num_classes": CLASSES, "condition_weight": 0.7, "pac": pac, "loss": "least_squares"}
    generator, discriminator = networks(CLASSES, pac)
    if name == "batch norm before":
        generator[-1].register_parameter("bias", None)
    if name == "frozen":
        for parameter in generator[0].parameters():
            parameter.requires_grad_(False)
    made = trainers((nn.Sequential(*generator, *BETWEEN[name]()), discriminator), adam, **options)
    given = lambda i: inputs(options)  # noqa: E731
    assert_close_in_float64(*(results(trainer, 4, given) for trainer in made), bound=1e-9)
    assert_close_in_float64(*map(state_of, made), bound=1e-9)
    assert made[0].plan.startswith(NATIVE)


@pytest.mark.usefixtures("device_backend")
def test_segments_inside_the_generator() -> None:
    """Behind them an activation, dropout and a layer, as anywhere."""
    options = {"reuse_fake": True}
    tail = [nn.Sigmoid(), nn.Dropout(0.2), nn.Linear(DATA, 4, dtype=torch.float64), nn.Tanh()]
    ends = SegmentedActivation(WIDTHS, KINDS), InPlainTorch()
    head, discriminator = networks(0)[0], MLP([4, 6, 1], dtype=torch.float64)
    made = []
    for kind, end in zip((TrainStep, Conditioned), ends, strict=True):
        g, d = nn.Sequential(*copy.deepcopy([*head]), end, *copy.deepcopy(tail)), copy.deepcopy(discriminator)
        if kind is Conditioned:
            g, d = in_plain_torch(g), in_plain_torch(d)
        made.append(kind(g, d, adam(g.parameters()), adam(d.parameters()), **options))
    given = lambda i: inputs(options, data=4)  # noqa: E731
    assert_close_in_float64(*(results(trainer, 4, given) for trainer in made), bound=1e-9)
    assert_close_in_float64(*map(state_of, made), bound=1e-9)
    assert made[0].plan.startswith(NATIVE)


@pytest.mark.usefixtures("device_backend")
def test_segments_before_the_first_layer() -> None:
    table = (2, 3), ("gumbel_softmax", "softmax")
    made = []
    pair = MLP([LATENT, 7, 4], dtype=torch.float64), MLP([4, 6, 1], dtype=torch.float64)
    for kind, first in ((TrainStep, SegmentedActivation(*table)), (Conditioned, InPlainTorch(*table))):
        generator, d = copy.deepcopy(pair)
        g = nn.Sequential(first, *generator)
        made.append(kind(g, d, adam(g.parameters()), adam(d.parameters())))
    assert_close_in_float64(*(results(trainer, 3, lambda i: inputs({}, data=4)) for trainer in made), bound=1e-9)
    assert_close_in_float64(*map(state_of, made), bound=1e-9)
    assert made[0].plan.startswith(NATIVE)


@pytest.mark.usefixtures("device_backend")
def test_labels_without_the_cross_entropy() -> None:
    options = {"num_classes": CLASSES, "d_steps": 2}
    made = trainers(networks(), adam, **options)
    assert_close_in_float64(*(results(trainer, 3, lambda i: inputs(options)) for trainer in made), bound=1e-9)
    assert_close_in_float64(*map(state_of, made), bound=1e-9)


@pytest.mark.usefixtures("device_backend")
@pytest.mark.parametrize("case", PAIRS[::3], ids=str)
def test_float32(case: Case) -> None:
    """At most twice the error that the plain loop has in float32."""
    options, pair = options_of(case), pair_of(case)
    ours, plain = trainers(pair, steady, torch.float32, **options)
    exact = trainers(pair, steady, **options)[1]
    exact.draws = exact.generator[-1].draws = torch.float32
    found = []
    for trainer in (ours, plain, exact):
        torch.manual_seed(2)
        given = inputs(options)
        if trainer is not exact:
            given = tuple(t if t is None or not t.is_floating_point() else t.float() for t in given)
        torch.manual_seed(3)
        found.append([*trainer.step(*given), *state_of(trainer)])
    assert ours.plan.startswith(NATIVE)
    assert_within_bound(*found)


@pytest.mark.usefixtures("device_backend")
@pytest.mark.deep_on("simt")
@pytest.mark.parametrize("case", PAIRS[::4], ids=str)
def test_nothing_is_allocated_but_the_statistics(case: Case) -> None:
    options = options_of(case)
    step = trainers(pair_of(case), adam, torch.float32, **options)[0]
    real, labels, _ = inputs(options)
    given = real.float(), labels
    for _ in range(6):
        step.step(*given)
    assert step.plan.startswith(NATIVE)
    assert_statistics_alone_are_allocated(functools.partial(step.step, *given), 20)


@pytest.mark.usefixtures("device_backend")
def test_a_step_draws_what_its_generator_draws() -> None:
    """Noise for z, then one batch of uniform numbers an update of D, and one for G."""
    options = {"d_steps": 2, "num_classes": 0}
    step = trainers(networks(0), adam, torch.float32, **options)[0]
    real = inputs(options)[0].float()
    step.step(real)
    torch.manual_seed(3)
    step.step(real)
    after = torch.rand(1)
    torch.manual_seed(3)
    torch.randn(3, BATCH, LATENT)
    for _ in range(3):
        torch.rand(BATCH, EVERY_CLASS)
    assert step.plan.startswith(NATIVE)
    assert torch.equal(torch.rand(1), after)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("batch", "pac"), [(32, 1), (100, 1), (96, 3)])
def test_threads_agree(batch: int, pac: int) -> None:
    """They share panels, or each layer's features and the runs; tiles of other heights round otherwise."""
    before, found = torch.get_num_threads(), []
    options = {"num_classes": CLASSES, "condition_weight": 0.7, "pac": pac, "gp_weight": 10.0, "loss": "wasserstein"}
    pair = MLP([LATENT + CLASSES, 256, DATA]), MLP([pac * (DATA + CLASSES), 256, 128, 1])
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        trainer = trainers(tuple(nn.Sequential(*network) for network in pair), steady, **options)[0]
        found.append([results(trainer, 3, lambda i: inputs(options, batch)), state_of(trainer)])
        assert trainer.plan.startswith(NATIVE)
    torch.set_num_threads(before)
    for other in found[1:]:
        assert_close_in_float64(other, found[0], bound=1e-9)


def as_float(tensor: Tensor | None) -> Tensor | None:
    return tensor.float() if tensor is not None and tensor.is_floating_point() else tensor


# What is not finite.


@pytest.mark.usefixtures("device_backend")
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", ["real", "noise", "weight", "bias", "weight of D"])
@pytest.mark.parametrize("batch", [5, 66])
def test_a_special_value(where: str, value: float, batch: int) -> None:
    """Infinities and NaN end up where the plain loop has them."""
    options = {"num_classes": CLASSES, "condition_weight": 0.7}
    made = trainers(networks(), steady, **options)
    found = []
    for trainer in made:
        statistics = []
        for i in range(4):
            torch.manual_seed(i)
            real, labels, noise = inputs(options, batch)
            if i == 2:
                last = [m for m in trainer.generator if isinstance(m, nn.Linear)][-1]
                inner = [m for m in trainer.discriminator if isinstance(m, nn.Linear)][1]
                at = {"real": real, "noise": noise, "weight": last.weight, "bias": last.bias}.get(where, inner.weight)
                with torch.no_grad():
                    at.view(-1)[at.numel() - 4] = value
            torch.manual_seed(1000 + i)
            statistics.append(list(trainer.step(real, labels, noise)))
        found.append([statistics, state_of(trainer)])
    assert made[0].plan.startswith(NATIVE)
    assert_close_in_float64(*found, bound=1e-9)
    assert not all(t.isfinite().all() for t in found[0][1])


@pytest.mark.usefixtures("compiled")
def test_a_uniform_number_of_zero_is_no_infinite_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2^24 one is: a million rows of two columns hold some, and no fake is NaN."""
    options = {"reuse_fake": True, "num_classes": 0}
    pair = nn.Sequential(nn.Linear(1, 64)), nn.Sequential(nn.Linear(64, 1))
    step = trainers(pair, adam, torch.float32, (64,), ("gumbel_softmax",), **options)[0]
    for seed in range(3):
        torch.manual_seed(seed)
        stats = step.step(torch.randn(200_000, 64), None, torch.randn(1, 200_000, 1))
        torch.manual_seed(seed)
        zeros = int((torch.rand(200_000, 64) == 0).sum())
        assert stats.d_loss.isfinite()
        assert stats.g_loss.isfinite()
        if zeros:
            return
    pytest.fail("no seed drew a zero")


# What is changed between two steps.


def set_both(name: str, value: Any) -> Callable[[nn.Module], None]:
    return lambda last: setattr(last, name, value)


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "tau": set_both("tau", 1.5),
    "kinds": set_both("kinds", (*KINDS[:2], "tanh", *KINDS[3:])),
    "kinds of draws": set_both("kinds", (KINDS[0], "softmax", *KINDS[2:])),
    "widths": set_both("widths", (1, 2, 3, 1, 3, 3, 6)),
}


@pytest.mark.usefixtures("device_backend")
@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_attribute(name: str) -> None:
    options = {"num_classes": CLASSES, "condition_weight": 0.7}
    made = trainers(networks(), adam, **options)
    given = lambda i: inputs(options)  # noqa: E731
    found = []
    for trainer in made:
        first = results(trainer, 2, given)
        CHANGES[name](trainer.generator[-1])
        found.append([first, results(trainer, 2, given), state_of(trainer)])
    assert made[0].plan.startswith(NATIVE)
    assert_close_in_float64(*found, bound=1e-9)


@pytest.mark.usefixtures("device_backend")
def test_a_changed_weight_of_the_cross_entropy() -> None:
    options = {"num_classes": CLASSES, "condition_weight": 0.7}
    made = trainers(networks(), adam, **options)
    found = []
    for trainer in made:
        first = results(trainer, 2, lambda i: inputs(options))
        for trainer.condition_weight in (3.0, 0.0):
            first += results(trainer, 2, lambda i: inputs(options))
        found.append([first, state_of(trainer)])
    assert made[0].plan.startswith(NATIVE)
    assert_close_in_float64(*found, bound=1e-9)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda step: setattr(step.generator[-1], "widths", [*WIDTHS]), "widths or kinds that are no tuple"),
        (lambda step: setattr(step.generator[-1], "tau", torch.tensor(0.2)), "has tau=tensor"),
        (lambda step: setattr(step.generator[-1], "forward", lambda x: x), "has a forward of its own"),
        (lambda step: step.generator[-1].register_forward_hook(lambda *_: None), "has hooks"),
        (lambda step: setattr(step.generator[-1], "extra", nn.Linear(1, 1)), "has modules inside"),
        (lambda step: setattr(step.generator[-1], "__class__", Sharper), "is a Sharper"),
        (lambda step: step.discriminator.insert(1, SegmentedActivation([8], ["tanh"])), "in a generator alone"),
    ],
)
def test_what_the_engine_leaves(change: Callable[[TrainStep], Any], reason: str) -> None:
    step = trainers(networks(0), adam, num_classes=0)[0]
    step.step(*inputs({}))
    assert step.plan.startswith(NATIVE)
    change(step)
    assert reason in step.plan
    assert step.plan.startswith("composed")


class Sharper(SegmentedActivation):
    def forward(self, input: Tensor, noise: Tensor | None = None) -> Tensor:
        return super().forward(2 * input, noise)


@pytest.mark.usefixtures("compiled")
def test_a_patched_function_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    step = trainers(networks(0), adam, num_classes=0)[0]
    step.step(*inputs({}))
    assert step.plan.startswith(NATIVE)
    calls, own = [], functional.segmented_activation
    monkeypatch.setattr(functional, "segmented_activation", lambda *a, **k: calls.append(1) or own(*a, **k))
    step.step(*inputs({}))
    assert len(calls) == 2
    assert "is not fastgan's own" in step.plan
    monkeypatch.undo()
    assert step.plan.startswith(NATIVE)


# Products of bfloat16, and other instruction sets.


@pytest.mark.usefixtures("compiled")
@pytest.mark.skipif(
    fastgan_backend.module is None or not fastgan_backend.module.has_bf16_step(True),
    reason="neither AVX-512 BF16 nor AMX is available",
)
@pytest.mark.parametrize("pac", [1, 3])
def test_operands_are_rounded_and_nothing_else(pac: int) -> None:
    """As of test_engine_bf16.py: a twentieth, at most, of what rounding the operands does to the result."""
    options = {"num_classes": CLASSES, "condition_weight": 0.7, "pac": pac}
    make = functools.partial(Adam, lr=0.05, betas=(0.5, 0.9), eps=0.01)
    generator, discriminator = (
        nn.Sequential(*MLP(sizes, "relu"))
        for sizes in ([LATENT + CLASSES, 41, DATA], [pac * (DATA + CLASSES), 51, 33, 1])
    )
    ours = trainers((generator, discriminator), make, torch.float32, precision="bf16", **options)[0]
    alike, exact = (trainers((generator, discriminator), make, **options)[1] for _ in range(2))
    for module in (*alike.generator, *alike.discriminator):
        if type(module) is nn.Linear:
            module.__class__ = RoundedLinear
    found = []
    for trainer in (ours, alike, exact):
        if trainer is not ours:
            trainer.generator[-1].draws = torch.float32
        torch.manual_seed(0)
        given = tuple(map(as_float, inputs(options)))
        torch.manual_seed(1)
        found.append([*trainer.step(*(given if trainer is ours else as_double(given))), *state_of(trainer)])
    assert ours.plan.startswith(NATIVE)
    assert overall_error(found[0], found[1]) <= 0.05 * overall_error(found[2], found[1])


@pytest.mark.usefixtures("compiled")
@pytest.mark.deep
@pytest.mark.parametrize("isa", ["baseline", rest("avx2")])  # make check runs all of them on avx2 and the backend cpu
def test_other_instruction_sets(isa: str) -> None:
    """A few of the comparisons above, where those kernels are chosen."""
    own = Path(__file__)
    environment = {**os.environ, "FASTGAN_ISA": isa, "FASTGAN_TUNE": "0", "PYTHONPATH": str(own.parent.parent)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(own), "-k"]
    done = subprocess.run(
        [*command, "other_widths or test_float32 or special_value"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:]
