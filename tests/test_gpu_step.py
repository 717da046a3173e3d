"""What only a GPU can show of a whole step: its captured graphs, beside the user's own graphs, streams and threads."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conformance import as_double, assert_close_in_float64, overall_error
from conftest import run_on, unavailable_reason
from launched_kernels import kernels_of
from plain_step import BATCH, DATA, Plain, adam, inputs, networks, state_of, step_in_another_thread, twin
from torch import nn

from fastgan import DiscriminatorStep, TrainStep, backend, choices
from fastgan.nn import MLP

REASON = None if torch.cuda.is_available() else "this test needs a CUDA GPU, and there is none"
REASON = REASON or unavailable_reason("cuda")
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")


@pytest.fixture(autouse=True)
def on_the_gpu() -> Iterator[None]:
    with run_on("cuda"):
        yield


@pytest.mark.parametrize("drawn", [False, True], ids=["noise given", "noise drawn"])
def test_a_whole_step_never_waits_and_is_one_graph(drawn: bool) -> None:
    """The third step replays what the second captured; all three are the steps of the plain loop."""
    pair = networks(num_classes=3, dtype=torch.float32)
    options = {"num_classes": 3, "d_steps": 2, "ema_decay": 0.9}
    ours, plain = (twin(kind, *pair, adam, **options) for kind in (TrainStep, Plain))
    exact = twin(Plain, *(copy.deepcopy(network).double() for network in pair), adam, **options)
    for i in range(4):
        given = inputs(options, torch.float32)
        labels = given[1].clone()
        noise = torch.randn_like(given[2]) if drawn else given[2]
        torch.manual_seed(i)
        torch.cuda.set_sync_debug_mode("error")
        try:
            statistics = ours.step(given[0], labels, None if drawn else noise)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.manual_seed(i)
        if drawn:
            noise = torch.empty_like(noise).normal_()
        expected = plain.step(given[0], given[1], noise)
        true = exact.step(*as_double((given[0], given[1], noise)))
        # As wholes: Adam makes a full step of a gradient that is zero but for rounding.
        for results in ((statistics, expected, true), tuple(map(state_of, (ours, plain, exact)))):
            assert overall_error(results[0], results[2]) <= 2 * overall_error(results[1], results[2]) + 1e-6
    real, labels, noise = inputs(options, torch.float32)
    launched = [name for name in kernels_of(lambda: ours.step(real, labels, noise)) if "fastgan" in name]
    assert any("step_loss" in name or "step_head" in name for name in launched)
    assert any("update" in name or "product" in name or "mlp_backward" in name for name in launched)


def assert_same_training(ours: TrainStep, plain: Plain) -> None:
    """In float64, where rounding is out of the question."""
    for a, b in zip(state_of(ours), state_of(plain), strict=True):
        assert_close_in_float64(a.double(), b.double(), 1e-8)


@pytest.mark.parametrize("path", ["library", "tiled"])
def test_steps_after_the_first_in_another_thread(path: str) -> None:
    """Which has a cuBLAS handle of its own, and captures the step."""
    backend.module.set_layer_path(path)
    try:
        pair = networks()
        ours, here, plain = (twin(kind, *pair, adam) for kind in (TrainStep, TrainStep, Plain))
        given = [inputs({}) for _ in range(4)]
        ours.step(*given[0])
        step_in_another_thread(ours, given[1:])
        for each in given:
            here.step(*each)
            plain.step(*each)
        assert_same_training(here, plain)
        assert_same_training(ours, plain)
    finally:
        backend.module.set_layer_path("automatic")


def capturable(parameters: Iterator[nn.Parameter]) -> torch.optim.Adam:
    return adam(parameters, capturable=True)


def test_a_step_within_a_graph_of_the_callers() -> None:
    """Replays count for themselves, and eager steps between them are not forgotten.

    The plain loop's optimizers are not capturable: those of torch take their powers of beta in float32.
    """
    pair = networks()
    ours, plain = twin(TrainStep, *pair, capturable), twin(Plain, *pair, adam)
    given = inputs({})

    def both(step: Callable[[], object]) -> None:
        step()
        plain.step(*given)
        assert_same_training(ours, plain)

    for _ in range(3):
        both(lambda: ours.step(*given))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours.step(*given)
    for _ in range(3):
        both(graph.replay)
        both(lambda: ours.step(*given))
    both(graph.replay)


def test_a_graph_of_the_callers_needs_counts_on_the_device() -> None:
    step = twin(TrainStep, *networks(), lambda parameters: adam(parameters, foreach=False))
    for group in (*step.g_optimizer.param_groups, *step.d_optimizer.param_groups):
        group["capturable"] = False
    given = inputs({})
    with torch.device("cpu"):  # where Adam then puts its counts
        step.step(*given)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="capturable=True"), torch.cuda.graph(graph):
        step.step(*given)


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The ways of a step are timed, with a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choices, "_is_on", True)


def test_the_fastest_way_is_chosen(tuned: None) -> None:
    """By a real clock, on copies: nothing of the user's is touched, and no memory is kept."""
    for dtype in (torch.float64, torch.float32):
        pair, given = networks(dtype=dtype), inputs({}, dtype)
        twin(TrainStep, *pair, adam).step(*inputs({}, dtype))  # what a first step loads
        ours, again, plain = (twin(kind, *pair, adam) for kind in (TrainStep, TrainStep, Plain))
        batch = given[0][: len(given[0]) - 1], None, given[2][:, :-1]  # of another size, which nothing is known of
        before = torch.cuda.get_rng_state(), torch.get_rng_state()
        ours.step(*batch)
        after = torch.cuda.get_rng_state(), torch.get_rng_state()
        assert all(map(torch.equal, before, after))
        (choice,) = ours._choices.made.values()
        assert choice.over
        assert choice.took < 2
        assert "measured here" in ours.plan
        for trainer, steps in ((again, 4), (plain, 4), (ours, 3)):
            for _ in range(steps):
                trainer.step(*batch)
        assert again._choices.made == ours._choices.made  # from the cache
        assert all(map(torch.equal, state_of(ours), state_of(again)))
        if dtype is torch.float64:
            assert_same_training(ours, plain)


def test_nothing_is_timed_within_a_graph_of_the_callers(tuned: None, monkeypatch: pytest.MonkeyPatch) -> None:
    step, given = twin(TrainStep, *networks(), capturable), inputs({})
    monkeypatch.setattr(choices, "_is_on", False)
    step.step(*given)
    monkeypatch.setattr(choices, "_is_on", True)
    step.load_state_dict(step.state_dict())
    assert step.plan.startswith("the whole step as one native call")  # anew
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.step(*given)
    graph.replay()
    assert step._choices.made == {}
    step.step(*given)
    assert len(step._choices.made) == 1


def test_tensors_that_move_between_steps_are_followed() -> None:
    pair = networks()
    ours, plain = (twin(kind, *pair, adam, ema_decay=0.9) for kind in (TrainStep, Plain))

    def data(trainer: object) -> None:
        for parameter in trainer.generator.parameters():
            parameter.data = parameter.data.clone()

    def vector(trainer: object) -> None:
        parameters = list(trainer.discriminator.parameters())
        nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(parameters) * 0.9, parameters)

    def moments(trainer: object) -> None:
        for state in trainer.g_optimizer.state.values():
            state["exp_avg"].data = state["exp_avg"].data * 0.5
            state["step"].data = state["step"].data.clone()

    def average(trainer: object) -> None:
        for parameter in trainer.ema.parameters():
            parameter.data = parameter.data * 2

    def swapped(trainer: object) -> None:
        for parameter in trainer.discriminator.parameters():
            parameter.data = torch.empty_like(parameter).copy_(parameter)

    for change in (lambda trainer: None, data, vector, moments, average, swapped):
        for trainer in (ours, plain):
            change(trainer)
        keep = [torch.randn(64) for _ in range(100)]  # what was freed is written over
        for _ in range(4):
            given = inputs({})
            ours.step(*given), plain.step(*given)
            assert_same_training(ours, plain)
        del keep


def test_sizes_of_batch_that_take_turns() -> None:
    """Each has its graph: from its third turn on nothing is captured again."""
    pair = networks(num_classes=3)
    options = {"num_classes": 3, "reuse_fake": True}
    ours, plain = (twin(kind, *pair, adam, **options) for kind in (TrainStep, Plain))
    side = torch.cuda.Stream()
    for i in range(12):
        real, labels, noise = inputs(options)
        rows = (6, 3, 5)[i % 3]
        given = real[:rows], labels[:rows], noise[:, :rows]
        plain.step(*given)
        torch.cuda.synchronize()
        with torch.cuda.stream(side if i % 4 == 3 else torch.cuda.current_stream()):
            ours.step(*given)
        torch.cuda.synchronize()
        assert_same_training(ours, plain)


def test_random_numbers_of_a_captured_step_beside_other_work() -> None:
    """What sets them on the stream of the capture may come late on a busy GPU."""
    streams, busy = [torch.cuda.Stream() for _ in range(16)], torch.randn(2048, 2048)
    for _ in range(12):
        pair = networks()
        ours, plain = (twin(kind, *pair, adam) for kind in (TrainStep, Plain))
        for i in range(3):
            real, _, noise = inputs({})
            torch.cuda.synchronize()
            for stream in streams:
                with torch.cuda.stream(stream):
                    for _ in range(8):
                        torch.mm(busy, busy)
            torch.manual_seed(i)
            ours.step(real)
            torch.manual_seed(i)
            plain.step(real, None, torch.randn_like(noise))
            assert_same_training(ours, plain)


def test_random_numbers_of_a_step_under_way_while_another_is_captured() -> None:
    """The steps with a penalty and those without have a graph each: the second is captured while the first still runs,
    and both draw the numbers that they draw where each step is waited for."""
    options = {"d_steps": 100, "instance_noise": 0.5, "r1_gamma": 1.0, "r1_every": 2}
    pair, given = networks(), inputs(options)
    found = []
    for waits in (True, False):
        trainer = twin(TrainStep, *pair, adam, **options)
        statistics = []
        torch.cuda.synchronize()
        for i in range(6):
            torch.manual_seed(i)
            statistics += trainer.step(*given)
            if waits:
                torch.cuda.synchronize()
        found.append([*statistics, *state_of(trainer)])
    assert all(map(torch.equal, *found))


def test_another_thread_draws_while_a_step_is_captured() -> None:
    """Neither of the two is refused, and the step's own draws are those of the plain loop."""
    generator = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4))
    step = twin(TrainStep, generator, MLP([4, 8, 1]), adam)
    stop, drawn, errors = threading.Event(), [0], []

    def draw() -> None:
        own = torch.cuda.Stream()
        with torch.cuda.stream(own):
            while not stop.is_set() and not errors:
                try:
                    assert torch.randn(1000, device="cuda").isfinite().all()
                    drawn[0] += 1
                except RuntimeError as error:
                    errors.append(error)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        for i in range(150):  # each size runs, is captured, and makes room for others
            for _ in range(2):
                assert all(value.isfinite() for value in step.step(torch.randn(2 + i % 50, 4)))
    finally:
        stop.set()
        thread.join()
    assert not errors
    assert drawn[0] > 0


@pytest.mark.parametrize("engine", [True, False], ids=["engine", "composed"])
@pytest.mark.parametrize("label", [3, -1, 1 << 40])
def test_a_label_out_of_range_is_told_and_harms_nothing(label: int, engine: bool) -> None:
    """Launch by launch, captured and replayed; the sample is as one of no class."""
    step = twin(TrainStep, *networks(num_classes=3, dtype=torch.float32), adam, num_classes=3, engine=engine)
    real, labels, noise = inputs({"num_classes": 3}, torch.float32)
    odd = labels.clone()
    odd[1] = label
    for _ in range(5):
        assert all(value.isnan() for value in step.step(real, odd, noise))
        with pytest.raises(
            ValueError, match=rf"labels must be in \[0, 3\), but those of an earlier step held {label}\."
        ):
            step.step(real, labels, noise)
        assert all(value.isfinite() for value in step.step(real, labels, noise))
    assert all(parameter.isfinite().all() for parameter in step.generator.parameters())
    assert all(parameter.isfinite().all() for parameter in step.discriminator.parameters())


@pytest.mark.parametrize("engine", [True, False], ids=["engine", "composed"])
@pytest.mark.parametrize("of_fakes", [True, False], ids=["fakes", "real"])
def test_a_label_out_of_range_is_told_by_a_step_of_d_alone(of_fakes: bool, engine: bool) -> None:
    discriminator = networks(num_classes=3, dtype=torch.float32)[1]
    step = DiscriminatorStep(discriminator, adam(discriminator.parameters()), num_classes=3, engine=engine)
    (real, labels, _), fake = inputs({"num_classes": 3}, torch.float32), torch.randn(BATCH, DATA)
    odd = (labels, labels + 3) if of_fakes else (labels + 3, labels)
    for _ in range(5):
        assert all(value.isnan() for value in step.step(real, fake, *odd))
        with pytest.raises(ValueError, match=r"labels must be in \[0, 3\), but those of an earlier step held [345]\."):
            step.step(real, fake, labels)
        assert all(value.isfinite() for value in step.step(real, fake, labels))
    assert all(parameter.isfinite().all() for parameter in discriminator.parameters())
