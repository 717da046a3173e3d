"""The whole-step engine, and what may happen between two steps: schedules, loading, copies, surgery, hooks."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conformance import assert_close_in_float64
from plain_step import Plain, adam, inputs, networks, state_of, step_in_another_thread, twin
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import StepLR

from fastgan import TrainStep

NATIVE = "the whole step as one native call"
pytestmark = pytest.mark.usefixtures("one_thread")


def follow(change: Callable[[Any, int], Any], make: Callable[..., Any] = adam, pair: Any = None, **options: Any) -> Any:
    """Six steps of the engine and of plain PyTorch, after each of which `change` does the same to both."""
    pair = pair or networks(options.get("num_classes", 0))
    ours, plain = (twin(kind, *pair, make, **options) for kind in (TrainStep, Plain))
    for i in range(6):
        given = inputs(options)
        results = []
        for trainer in (ours, plain):
            torch.manual_seed(i)
            results.append(tuple(trainer.step(*given)))
            torch.manual_seed(100 + i)
            change(trainer, i)
        assert_close_in_float64(*results, bound=1e-9)
        assert_close_in_float64(state_of(ours), state_of(plain), bound=1e-8)
    return ours


def test_a_scheduler(engine_backend: str, recwarn: pytest.WarningsRecorder) -> None:
    def change(trainer: Any, i: int) -> None:
        if i == 0:
            trainer.schedulers = [StepLR(o, 2, 0.1) for o in (trainer.g_optimizer, trainer.d_optimizer)]
        for scheduler in trainer.schedulers:
            scheduler.step()

    trainer = follow(change)
    assert trainer.plan.startswith(NATIVE)
    assert trainer.g_optimizer.param_groups[0]["lr"] < 1e-4
    assert not [w for w in recwarn if "lr_scheduler" in str(w.message) and "Seems like" in str(w.message)]


def test_a_learning_rate_of_its_own_for_each_group(engine_backend: str) -> None:
    def make(parameters: Iterator[nn.Parameter]) -> Adam:
        weights = list(parameters)
        return Adam([{"params": weights[:1], "lr": 1e-2, "betas": (0.9, 0.9)}, {"params": weights[1:]}])

    def change(trainer: Any, i: int) -> None:
        trainer.g_optimizer.param_groups[1].update(lr=10.0 ** -(i + 2), weight_decay=0.1 * i, eps=1e-4, maximize=i == 3)

    assert follow(change, make).plan.startswith(NATIVE)


def test_a_learning_rate_that_is_a_tensor(engine_backend: str) -> None:
    def make(parameters: Iterator[nn.Parameter]) -> Adam:
        return Adam(parameters, lr=torch.tensor(1e-3), fused=True)

    def change(trainer: Any, i: int) -> None:
        if i == 2:
            trainer.g_optimizer.param_groups[0]["lr"].fill_(1e-2)
        if i == 4:
            trainer.d_optimizer.param_groups[0]["lr"] = torch.tensor(1e-4)

    assert follow(change, make).plan.startswith(NATIVE)


def test_counts_of_steps_elsewhere(engine_backend: str) -> None:
    """With float64 as the default, the optimizers count in it; and a count may be changed in place."""

    def change(trainer: Any, i: int) -> None:
        if i == 3:
            for state in trainer.g_optimizer.state.values():
                assert state["step"].dtype is torch.float64
                state["step"].fill_(50)

    torch.set_default_dtype(torch.float64)
    try:
        assert follow(change, d_steps=2).plan.startswith(NATIVE)
    finally:
        torch.set_default_dtype(torch.float32)


def test_loading_a_state_dict_amid_training(engine_backend: str) -> None:
    saved: dict[type, Any] = {}

    def change(trainer: Any, i: int) -> None:
        parts = (trainer.generator, trainer.discriminator, trainer.g_optimizer, trainer.d_optimizer)
        if i == 1:
            saved[type(trainer)] = copy.deepcopy([part.state_dict() for part in parts])
        if i == 3:
            for part, state in zip(parts, saved[type(trainer)], strict=True):
                part.load_state_dict(state)

    assert follow(change).plan.startswith(NATIVE)


def test_sampling_in_eval_between_steps(engine_backend: str) -> None:
    generator = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4)).double()
    samples: dict[type, list[Tensor]] = {}

    def change(trainer: Any, i: int) -> None:
        trainer.generator.eval()
        with torch.no_grad():
            samples.setdefault(type(trainer), []).append(trainer.generator(torch.ones(5, 3, dtype=torch.float64)))
        trainer.generator.train(i != 2)  # the next step with the running statistics and without dropout

    assert follow(change, pair=(generator, networks()[1])).plan.startswith(NATIVE)
    assert_close_in_float64(samples[TrainStep], samples[Plain])
    assert not torch.equal(samples[TrainStep][0], samples[TrainStep][1])


def test_training_in_another_thread(engine_backend: str) -> None:
    ours, here = (twin(TrainStep, *networks(), adam) for _ in range(2))
    here.load = None
    given = [inputs({}) for _ in range(4)]
    here.generator.load_state_dict(ours.generator.state_dict())
    here.discriminator.load_state_dict(ours.discriminator.state_dict())
    ours.step(*given[0])
    step_in_another_thread(ours, given[1:])
    for each in given:
        here.step(*each)
    assert all(map(torch.equal, state_of(ours), state_of(here)))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda step: pickle.loads(pickle.dumps(step))], ids=["deepcopy", "pickle"]
)
def test_copies_are_independent(engine_backend: str, copied: Callable[[Any], Any]) -> None:
    trainer = twin(TrainStep, *networks(), adam, ema_decay=0.9)
    given = [inputs({}) for _ in range(3)]
    trainer.step(*given[0])
    network = copy.deepcopy(trainer.generator)
    other = copied(trainer)
    assert other.plan.startswith(NATIVE)
    before = [t.clone() for t in state_of(trainer)]
    other.step(*given[1])
    assert all(map(torch.equal, before, state_of(trainer)))
    trainer.step(*given[1])
    assert all(map(torch.equal, state_of(other), state_of(trainer)))
    assert not torch.equal(network[0].weight, trainer.generator[0].weight)
    other.step(*given[2])
    assert not torch.equal(other.generator[0].weight, trainer.generator[0].weight)


def test_a_replaced_parameter_is_noticed(engine_backend: str) -> None:
    def change(trainer: Any, i: int) -> None:
        layer = trainer.generator[0]
        if i == 1:
            layer.weight.data = layer.weight.data.clone() * 0.5
        if i == 2:
            trainer.discriminator[0].weight.data.clamp_(-0.1, 0.1)  # as the critic of the first WGAN
        if i == 3:
            layer.weight = nn.Parameter(layer.weight.detach() * 2)
            trainer.g_optimizer = adam(trainer.generator.parameters())

    assert follow(change).plan.startswith(NATIVE)


def test_a_replaced_or_resized_layer_is_noticed(engine_backend: str) -> None:
    def change(trainer: Any, i: int) -> None:
        network = trainer.generator
        if i == 1:
            network[0], network[2] = nn.Linear(3, 10).double(), nn.Linear(10, 4).double()
        if i == 3:
            network.append(nn.Softplus())
        if i in (1, 3):
            trainer.g_optimizer = adam(network.parameters())

    assert follow(change).plan.startswith(NATIVE)


def test_a_frozen_parameter_is_noticed(engine_backend: str) -> None:
    def change(trainer: Any, i: int) -> None:
        trainer.discriminator[0].requires_grad_(i not in (1, 2))
        trainer.generator[2].bias.requires_grad_(i != 2)

    assert follow(change).plan.startswith(NATIVE)


@pytest.mark.parametrize(
    ("part", "register"),
    [
        (lambda step: step.discriminator, "register_forward_hook"),
        (lambda step: step.generator[0], "register_forward_pre_hook"),
        (lambda step: step.generator[0].weight, "register_hook"),
        (lambda step: step.d_optimizer, "register_step_post_hook"),
    ],
    ids=["network", "layer", "parameter", "optimizer"],
)
def test_hooks_are_called(engine_backend: str, part: Callable[[Any], Any], register: str) -> None:
    calls: list[type] = []
    handles: dict[int, Any] = {}

    def change(trainer: Any, i: int) -> None:
        if i == 1:
            handles[id(trainer)] = getattr(part(trainer), register)(lambda *_: calls.append(type(trainer)))
        if i == 2 and isinstance(trainer, TrainStep):
            assert trainer.plan.startswith("composed")
            assert "hooks" in trainer.plan
        if i == 4:
            handles[id(trainer)].remove()

    assert follow(change).plan.startswith(NATIVE)
    assert calls.count(TrainStep) > 0


def test_changed_options_are_noticed(engine_backend: str) -> None:
    def change(trainer: Any, i: int) -> None:
        if i == 1:
            trainer.loss = "minimax"
        if i == 2:
            trainer.real_target = 0.7

    assert follow(change).plan.startswith(NATIVE)


def test_the_steps_between_those_with_the_r1_penalty(engine_backend: str) -> None:
    trainer = follow(lambda trainer, i: None, r1_gamma=2.0, r1_every=3)
    assert trainer.plan.startswith(NATIVE)
    assert "composed" not in trainer.plan
    generator, discriminator = networks()
    discriminator.insert(1, nn.BatchNorm1d(8, dtype=torch.float64))
    trainer = follow(lambda trainer, i: None, pair=(generator, discriminator), r1_gamma=2.0, r1_every=3)
    assert trainer.plan.startswith(NATIVE)
    assert (
        "1 step in 3, with the R1 penalty, composed of fused ops under autograd, because D has a Batch" in trainer.plan
    )
