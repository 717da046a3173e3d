"""The whole-step engine: 200 steps against the loop in plain PyTorch, and what may happen between two steps."""

from __future__ import annotations

import copy
import functools
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conformance import as_double, assert_close_in_float64, overall_error
from conftest import run_on_or_skip
from plain_step import Plain, adam, inputs, networks, state_of, twin
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import StepLR

from fastgan import TrainStep
from fastgan import backend as fastgan_backend
from fastgan.nn import MLP, fuse

NATIVE = "the whole step as one native call"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from a second thread; test_threads_agree has more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def engine_backend(backend: str) -> str:
    if backend == "reference":
        pytest.skip("the reference has no engine")
    return backend


@pytest.fixture(params=["tiled", "library"])
def a_launch_a_layer(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where networks this narrow would have one a network; by the project's products, or by torch's."""
    with run_on_or_skip("simt"):
        fastgan_backend.module.set_layer_path(request.param)
        yield
        fastgan_backend.module.set_layer_path("automatic")


# The four standard configurations with an eighth of their widths (ring: a quarter), and a batch that fills no panel.
CONFIGURATIONS: dict[str, tuple[list[int], list[int], str, str | None, int]] = {
    "ring": ([2, 32, 32, 2], [2, 32, 32, 1], "relu", None, 33),
    "digits": ([8, 32, 64, 8], [8, 64, 32, 1], "relu", "tanh", 16),
    "mnist": ([13, 32, 64, 128, 98], [98, 128, 64, 32, 1], "leaky_relu", "tanh", 16),
    "wide": ([16, 100, 100, 70], [70, 100, 100, 1], "leaky_relu", "tanh", 40),
}
# amsgrad, weight decay and both kinds of it
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "Adam": functools.partial(Adam, lr=2e-4, betas=(0.5, 0.999)),
    "Adam, decay": functools.partial(Adam, lr=2e-4, betas=(0.5, 0.999), weight_decay=0.1, fused=True),
    "AdamW, amsgrad": functools.partial(AdamW, lr=2e-4, weight_decay=0.1, amsgrad=True),
}
CASES: dict[str, tuple[str, str, bool, dict[str, Any]]] = {  # configuration, optimizer, extra layers, options
    "ring": ("ring", "Adam", False, {"reuse_fake": True}),
    "digits": ("digits", "Adam", False, {"reuse_fake": True}),
    "mnist": ("mnist", "Adam", False, {"reuse_fake": True}),
    "wide": ("wide", "Adam", False, {"reuse_fake": True}),
    "minimax": ("ring", "Adam", False, {"loss": "minimax"}),
    "two D steps": ("digits", "Adam", False, {"d_steps": 2}),
    "two D steps, reused": ("digits", "Adam, decay", False, {"d_steps": 2, "reuse_fake": True, "ema_decay": 0.9}),
    "conditional": ("digits", "Adam", False, {"num_classes": 3}),
    "decay": ("ring", "Adam, decay", False, {}),
    "amsgrad": ("ring", "AdamW, amsgrad", False, {"real_target": 0.9, "fake_target": 0.1}),
    "batch_norm, dropout": ("digits", "Adam", True, {}),
    "all": (
        "digits",
        "AdamW, amsgrad",
        True,
        {"loss": "minimax", "d_steps": 2, "num_classes": 3, "ema_decay": 0.9, "real_target": 0.9},
    ),
    "all, reused": ("ring", "Adam, decay", True, {"d_steps": 2, "num_classes": 3, "reuse_fake": True}),
}


def build(name: str, extra: bool, classes: int, dtype: torch.dtype) -> tuple[nn.Sequential, nn.Sequential]:
    """The networks of a configuration, on request with BatchNorm and Dropout in both."""
    generator, discriminator, activation, output, _ = CONFIGURATIONS[name]
    torch.manual_seed(0)
    pair = (
        MLP([generator[0] + classes, *generator[1:]], activation, output, dtype=dtype),
        MLP([discriminator[0] + classes, *discriminator[1:]], dtype=dtype),
    )
    if not extra:
        return pair
    mixed = []
    for network in pair:
        width = network[0].out_features
        layers = [network[0], nn.BatchNorm1d(width, dtype=dtype), *network[1:2], nn.Dropout(0.3), *network[2:]]
        mixed.append(nn.Sequential(*layers))
    return mixed[0], mixed[1]


def draw(name: str, options: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor]:
    """One step's real data, labels and noise."""
    generator, *_, batch = CONFIGURATIONS[name]
    rows = options.get("d_steps", 1) + (not options.get("reuse_fake", False))
    classes = options.get("num_classes", 0)
    labels = torch.randint(classes, (batch,)) if classes else None
    real = torch.randn(batch, generator[-1], dtype=torch.float64).clamp(-1, 1)
    return real.to(dtype), labels, torch.randn(rows, batch, generator[0], dtype=torch.float64).to(dtype)


def train(kind: Any, case: str, dtype: torch.dtype, steps: int) -> tuple[Any, list[tuple[Tensor, ...]]]:
    """A trainer after some steps, and its statistics."""
    name, optimizer, extra, options = CASES[case]
    pair = build(name, extra, options.get("num_classes", 0), dtype)
    trainer = twin(kind, *pair, OPTIMIZERS[optimizer], **options)
    statistics = []
    for i in range(steps):
        torch.manual_seed(i)
        given = draw(name, options, dtype)
        torch.manual_seed(1000 + i)  # of the masks of Dropout, which the engine draws as torch does
        statistics.append(tuple(trainer.step(*given)))
    return trainer, statistics


Results = tuple[list[Tensor], list[tuple[Tensor, ...]]]


@functools.cache
def train_plain(case: str, dtype: torch.dtype, steps: int, device: str) -> Results:
    """What plain PyTorch ends with, whichever backend it is held against, and its statistics."""
    trainer, statistics = train(Plain, case, dtype, steps)
    return state_of(trainer), statistics


def plain_results(case: str, dtype: torch.dtype, steps: int) -> Results:
    return train_plain(case, dtype, steps, torch.get_default_device().type)


@pytest.mark.deep_on_simt
@pytest.mark.parametrize("case", CASES)
def test_200_steps(engine_backend: str, case: str) -> None:
    """In float64, where 200 steps amplify rounding to no more than this."""
    steps = 200
    ours, statistics = train(TrainStep, case, torch.float64, steps)
    assert ours.plan.startswith(NATIVE)
    state, expected = plain_results(case, torch.float64, steps)
    assert_close_in_float64(statistics, expected, bound=1e-7)
    assert_close_in_float64(state_of(ours), state, bound=1e-6)


@pytest.mark.deep_on_simt
@pytest.mark.parametrize("case", [case for case in CASES if not CASES[case][2]])
def test_200_steps_in_float32(engine_backend: str, case: str) -> None:
    """No further from float64 than twice what plain PyTorch in float32 is.

    Not where a bias is followed by BatchNorm: its gradient is zero but for rounding, and Adam makes a full step of it.
    """
    if engine_backend == "simt" and case not in ("mnist", "two D steps, reused", "amsgrad"):
        pytest.skip("the host model takes its time, and the other cases are the same kernels")
    steps = 200
    exact, _ = plain_results(case, torch.float64, steps)
    plain, _ = plain_results(case, torch.float32, steps)
    ours, _ = train(TrainStep, case, torch.float32, steps)
    assert overall_error(state_of(ours), exact) <= 2 * overall_error(plain, exact) + 1e-6


@pytest.mark.deep
@pytest.mark.parametrize("case", ["mnist", "two D steps, reused", "conditional", "amsgrad", "all"])
def test_other_layer_paths(a_launch_a_layer: None, case: str) -> None:
    steps = 20
    ours, statistics = train(TrainStep, case, torch.float64, steps)
    state, expected = plain_results(case, torch.float64, steps)
    assert_close_in_float64(statistics, expected, bound=1e-9)
    assert_close_in_float64(state_of(ours), state, bound=1e-8)


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
    context = backend_of_this_thread()

    def work() -> None:
        with context():
            for each in given[1:]:
                ours.step(*each)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    for each in given:
        here.step(*each)
    assert all(map(torch.equal, state_of(ours), state_of(here)))


def backend_of_this_thread() -> Callable[..., Any]:
    """A new thread has none of torch's thread-local modes, such as the default device."""
    return functools.partial(torch.device, torch.get_default_device())


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
    assert "1 step in 3, with the R1 penalty, composed" in trainer.plan


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"make": functools.partial(SGD, lr=0.1)}, "g_optimizer is SGD"),
        ({"r1_gamma": 1.0, "r1_every": 1}, "r1_gamma"),
        ({"engine": False}, "engine is False"),
        ({"tail": nn.Hardtanh()}, "generator[4] is a Hardtanh"),
        ({"make": functools.partial(Adam, differentiable=True)}, "differentiable"),
        ({"tail": nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4).double())}, "generator[4] is a Parametrized"),
    ],
    ids=["SGD", "R1", "off", "layer", "differentiable", "spectral_norm"],
)
def test_what_it_cannot_plan_runs_composed(compiled: None, changed: dict[str, Any], reason: str) -> None:
    make, tail = changed.pop("make", adam), changed.pop("tail", None)
    generator, discriminator = networks()
    generator = fuse(nn.Sequential(*generator, *([tail] if tail else [])))
    trainer = twin(TrainStep, generator, discriminator, make, **changed)
    assert trainer.plan.startswith("composed")
    assert reason in trainer.plan
    assert "\n" not in trainer.plan
    with pytest.raises(RuntimeError, match="composed"):
        trainer.profile(*inputs({}))


def test_shared_parameters_run_composed(compiled: None) -> None:
    generator = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 4)).double()
    generator[0].weight = nn.Parameter(torch.randn(3, 3, dtype=torch.float64))
    generator.insert(2, generator[0])
    trainer = twin(TrainStep, generator, networks()[1], adam)
    assert "shares a parameter" in trainer.plan


def test_gradients_are_not_kept(compiled: None) -> None:
    trainer = twin(TrainStep, *networks(), adam)
    for p in trainer.generator.parameters():
        p.grad = torch.ones_like(p)
    trainer.step(*inputs({}))
    assert all(p.grad is None for n in (trainer.generator, trainer.discriminator) for p in n.parameters())


def test_autograd_notices_the_update(compiled: None) -> None:
    """A graph from before the step must not be walked with the weights from after it."""
    trainer = twin(TrainStep, *networks(), adam)
    value = trainer.generator(torch.randn(2, 3, dtype=torch.float64, requires_grad=True))
    trainer.step(*inputs({}))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.sum().backward()


def test_noise_is_drawn_as_torch_draws_it(engine_backend: str) -> None:
    steps = [twin(TrainStep, *networks(), adam, d_steps=2) for _ in range(2)]
    steps[1].generator.load_state_dict(steps[0].generator.state_dict())
    steps[1].discriminator.load_state_dict(steps[0].discriminator.state_dict())
    real, _, _ = inputs({"d_steps": 2})
    torch.manual_seed(3)
    drawn = steps[0].step(real)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    given = steps[1].step(real, noise=torch.randn(3, *real.shape[:1], 3, dtype=torch.float64))
    assert torch.equal(torch.stack(drawn), torch.stack(given))
    assert torch.equal(after, torch.get_rng_state())


@pytest.mark.parametrize("options", [{}, {"d_steps": 2, "num_classes": 3, "ema_decay": 0.9}], ids=str)
def test_nothing_is_allocated_but_the_statistics(engine_backend: str, options: dict[str, Any]) -> None:
    """Counted by torch's own record of its allocations, noise and masks included."""
    classes = options.get("num_classes", 0)
    pair = build("digits", True, classes, torch.float32)
    trainer = twin(TrainStep, *pair, OPTIMIZERS["Adam"], **options)
    real, labels, _ = draw("digits", options, torch.float32)
    for _ in range(2):
        trainer.step(real, labels)
    assert trainer.plan.startswith(NATIVE)
    if real.is_cuda:  # where the allocator deals in blocks of 512 bytes
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        kept = [trainer.step(real, labels) for _ in range(5)]
        assert torch.cuda.memory_stats()["allocation.all.allocated"] - before == 5
        return
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = [trainer.step(real, labels) for _ in range(5)]
    allocated = [e.self_cpu_memory_usage for e in profile.events() if e.self_cpu_memory_usage > 0]
    assert len(kept) == 5
    assert sum(allocated) == 5 * 4 * 4
    # The record sees what it should: the composed path allocates far more.
    trainer.engine = False
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        trainer.step(real, labels)
    assert sum(e.self_cpu_memory_usage for e in profile.events() if e.self_cpu_memory_usage > 0) > 10_000


@pytest.mark.parametrize("batch", [32, 96, 100, 256])
def test_threads_agree(compiled: None, batch: int) -> None:
    """The same bits on any number of threads, however the batch is shared out among them."""
    results = []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        generator = nn.Sequential(nn.Linear(16, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 100), nn.Tanh())
        discriminator = MLP([100, 200, 128, 1])
        trainer = TrainStep(generator, discriminator, adam(generator.parameters()), adam(discriminator.parameters()))
        for i in range(3):
            torch.manual_seed(i)
            statistics = trainer.step(torch.randn(batch, 100))
        results.append([*state_of(trainer), *statistics])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_strided_inputs(engine_backend: str) -> None:
    pair = networks(3)
    ours, plain = (twin(kind, *pair, adam, num_classes=3, d_steps=2) for kind in (TrainStep, Plain))
    real = torch.randn(4, 2, 6, dtype=torch.float64).permute(1, 2, 0)
    noise = torch.randn(3, 6, 6, dtype=torch.float64)[:, :, ::2]
    labels = torch.arange(12).reshape(2, 6) % 3
    assert_close_in_float64(tuple(ours.step(real, labels, noise)), tuple(plain.step(real, labels, noise)))
    assert_close_in_float64(state_of(ours), state_of(plain))


def test_profile_names_the_phases(compiled: None) -> None:
    trainer = twin(TrainStep, *networks(), adam)
    seconds = trainer.profile(*inputs({}))
    assert {"generator forward", "discriminator forward", "discriminator update"} <= set(seconds)
    assert all(value >= 0 for value in seconds.values())
    assert sum(seconds.values()) > 0
    assert trainer.steps_done == 1


@pytest.mark.parametrize("name", ["odd", "wide enough for two blocks of a sum"])
@pytest.mark.parametrize("options", [{}, {"d_steps": 2, "reuse_fake": True, "num_classes": 3}], ids=str)
def test_bf16_is_as_exact_as_autocast(engine_backend: str, name: str, options: dict[str, Any]) -> None:
    """No further from float64 than what torch.autocast makes of the same training."""
    classes = options.get("num_classes", 0)
    sizes = {
        "odd": ([7, 40, 33, 11], [11, 50, 37, 1]),
        "wide enough for two blocks of a sum": ([9, 1100, 64], [64, 1100, 1]),
    }
    generator, discriminator = (list(s) for s in sizes[name])
    generator[0], discriminator[0] = generator[0] + classes, discriminator[0] + classes
    torch.manual_seed(0)
    pair = MLP(generator, "gelu", "tanh"), MLP(discriminator)
    make = OPTIMIZERS["Adam"]
    exact = twin(Plain, pair[0].double(), pair[1].double(), make, **options)
    for network in pair:
        network.float()
    native = twin(TrainStep, *pair, make, precision="bf16", **options)
    if not native.plan.startswith(NATIVE):
        assert "AMX" in native.plan
        pytest.skip(native.plan)
    autocast = twin(TrainStep, *pair, make, precision="bf16", engine=False, **options)
    rows = options.get("d_steps", 1) + (not options.get("reuse_fake", False))
    statistics: list[list[Any]] = [[], [], []]
    for _ in range(4):
        labels = torch.randint(classes, (37,)) if classes else None
        real, noise = torch.randn(37, sizes[name][0][-1]).clamp(-1, 1), torch.randn(rows, 37, sizes[name][0][0])
        for record, step in zip(statistics, (native, autocast, exact), strict=True):
            record += step.step(*(as_double((real, labels, noise)) if step is exact else (real, labels, noise)))
    errors = [overall_error(record, statistics[2]) for record in statistics[:2]]
    assert errors[0] <= 2 * errors[1] + 1e-6
    errors = [overall_error(state_of(step), state_of(exact)) for step in (native, autocast)]
    assert errors[0] <= 1.2 * errors[1]
    assert errors[0] > 0
