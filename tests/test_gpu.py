"""What only a GPU can show: streams, graphs, no waiting for the device, sizes over 2^31, one launch a call.

The functions named `sanitize` call every kernel once at small sizes: what tools/gpu.sh runs under compute-sanitizer.
"""

from __future__ import annotations

import copy
import ctypes
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conformance import as_double, assert_close_in_float64, assert_within_bound, overall_error
from conftest import run_on, unavailable_reason
from plain_step import Plain, adam, inputs, networks, state_of, twin
from torch import Tensor, nn

import fastgan
from fastgan import TrainStep, choices
from fastgan import backend as fastgan_backend
from fastgan.functional import binary_cross_entropy_with_logits, discriminator_loss, generator_loss, mlp
from fastgan.nn import MLP

REASON = None if torch.cuda.is_available() else "this test needs a CUDA GPU, and there is none"
REASON = REASON or unavailable_reason("cuda")
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

PATHS = ("narrow", "tiled", "library")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def on_the_gpu() -> Iterator[None]:
    with run_on("cuda"):
        yield
    fastgan_backend.module.set_layer_path("automatic")


def network(dtype: torch.dtype = torch.float32, batch: int = 33, sizes: tuple[int, ...] = (7, 65, 129, 2)):
    """A function of nothing that computes a network's value and gradients on fixed tensors."""
    weights = [torch.randn(o, i, dtype=dtype, requires_grad=True) for i, o in pairwise(sizes)]
    biases = [torch.randn(o, dtype=dtype, requires_grad=True) for o in sizes[1:]]
    x = torch.randn(batch, sizes[0], dtype=dtype)
    names = ["leaky_relu"] * (len(sizes) - 2) + ["tanh"]

    def run() -> list[Tensor]:
        y = mlp(x, weights, biases, names)
        return [y.detach(), *torch.autograd.grad(y, [*weights, *biases], torch.ones_like(y))]

    return run


def losses(dtype: torch.dtype = torch.float32, n: int = 5000) -> Callable[[], list[Tensor]]:
    real, fake = (torch.randn(n, 1, dtype=dtype, requires_grad=True) for _ in range(2))
    target = torch.rand(n, 1, dtype=dtype)

    def run() -> list[Tensor]:
        d, g = discriminator_loss(real, fake), generator_loss(fake)
        b = binary_cross_entropy_with_logits(real, target, pos_weight=target[:1])
        return [d.detach(), g.detach(), b.detach(), *torch.autograd.grad(d + g + b, (real, fake))]

    return run


CALLS = {"losses": losses, "network": network}


@pytest.mark.parametrize("dtype", DTYPES)
def test_sanitize_losses(dtype: torch.dtype) -> None:
    losses(dtype)()
    logits = torch.randn(33, dtype=dtype, requires_grad=True)
    generator_loss(logits, reduction="none").sum().backward()
    binary_cross_entropy_with_logits(logits, torch.rand(33, dtype=dtype), reduction="none").sum().backward()
    torch.cuda.synchronize()


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sanitize_layers(dtype: torch.dtype, path: str, precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    try:
        fastgan_backend.module.set_layer_path(path)
        network(dtype)()
        network(dtype, 3, (1100, 20))()  # k is shared out among blocks
        x, weight = (torch.randn(n, 5, dtype=dtype, requires_grad=True) for n in (3, 4))
        (gradient,) = torch.autograd.grad(mlp(x, [weight], None, ["tanh"]).sum(), x, create_graph=True)
        gradient.sum().backward()  # the second derivative
        torch.cuda.synchronize()
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("name", CALLS)
def test_graphs(name: str) -> None:
    torch.manual_seed(1)
    call = CALLS[name]()
    torch.manual_seed(1)
    twin = CALLS[name]()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    for _ in range(3):
        graph.replay()
    for a, b in zip(results, twin(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_cudagraph_trees() -> None:
    """torch.compile's own graphs, whose pool of memory may keep nothing of ours."""
    weights, biases = [torch.randn(65, 7), torch.randn(3, 65)], [torch.randn(65), torch.randn(3)]

    def run(x: Tensor) -> Tensor:
        return generator_loss(mlp(x, weights, biases, ["relu", "identity"]))

    def torchs(x: Tensor) -> Tensor:
        w, b = ([t.to(x.dtype) for t in tensors] for tensors in (weights, biases))
        logits = F.linear(F.relu(F.linear(x, w[0], b[0])), w[1], b[1])
        return F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))

    x = torch.randn(9000, 7)
    compiled = torch.compile(run, mode="reduce-overhead", fullgraph=True)
    for _ in range(4):
        assert_within_bound(compiled(x).clone(), torchs(x), torchs(x.double()))


@pytest.mark.parametrize("name", CALLS)
def test_two_streams_at_once(name: str) -> None:
    expected = []
    for seed in range(2):
        torch.manual_seed(seed)
        call = CALLS[name]()
        for _ in range(20):
            result = call()
        expected.append([t.clone() for t in result])
    found: dict[int, list[Tensor]] = {}
    calls = []
    for seed in range(2):
        torch.manual_seed(seed)
        calls.append(CALLS[name]())
    torch.cuda.synchronize()

    def work(seed: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()), torch.device("cuda"):
            for _ in range(20):
                found[seed] = calls[seed]()
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(2):
        for a, b in zip(found[seed], expected[seed], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_streams_that_are_not_torchs_share_no_counters() -> None:
    """One may be destroyed with work under way, and its handle then be that of another."""
    call, runtime, handle = losses(n=100_000), torch.cuda.cudart(), ctypes.c_uint64()
    expected = [t.clone() for t in call()]
    torch.cuda.synchronize()
    assert int(runtime.cudaStreamCreate(ctypes.addressof(handle))) == 0
    try:
        with torch.cuda.stream(torch.cuda.ExternalStream(handle.value)):
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiled:
                found = call()
                torch.cuda.synchronize()
        assert all(map(torch.equal, found, expected))
        names = [event.name.lower() for event in profiled.events()]
        assert any("memset" in name or "fill" in name for name in names), names
    finally:
        runtime.cudaStreamDestroy(handle.value)


@pytest.mark.parametrize("name", CALLS)
def test_nothing_waits_for_the_device(name: str) -> None:
    call = CALLS[name]()
    call()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def kernels_of(call: Callable[[], object]) -> list[str]:
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    events = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return [name for name in events if "emcpy" not in name]


@pytest.mark.parametrize("n", [64, 1 << 20])
def test_a_loss_is_one_launch(n: int) -> None:
    real, fake = (torch.randn(n, 1, requires_grad=True) for _ in range(2))
    names = kernels_of(lambda: discriminator_loss(real, fake))
    assert len(names) == 1, names
    assert "logits_loss_sum" in names[0]


def test_a_narrow_network_is_one_launch_each_way() -> None:
    fastgan_backend.module.set_layer_path("narrow")
    call = network()
    names = [name for name in kernels_of(call) if "fastgan" in name]
    assert [("forward" in n, "backward" in n) for n in names] == [(True, False), (False, True)], names


@pytest.mark.skipif(REASON is not None or torch.cuda.mem_get_info()[0] < 30e9, reason="needs 30 GB of free GPU memory")
def test_more_than_two_to_the_31_elements() -> None:
    n = (1 << 31) + 77
    logits = torch.zeros(n, dtype=torch.bfloat16)
    logits[-1] = 100.0
    logits.requires_grad_()
    loss = generator_loss(logits, kind="minimax", reduction="sum")
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[0].item() == -0.5
    assert gradient[-1].item() == -1.0
    exact = -((n - 1) * 0.6931471805599453 + 100)
    assert abs(loss.item() - exact) <= 2**-8 * abs(exact)  # a rounding to bfloat16


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
    assert any("step_loss" in name for name in launched)
    assert any("update" in name or "product" in name or "mlp_backward" in name for name in launched)


def assert_same_training(ours: TrainStep, plain: Plain) -> None:
    """In float64, where rounding is out of the question."""
    for a, b in zip(state_of(ours), state_of(plain), strict=True):
        assert_close_in_float64(a.double(), b.double(), 1e-8)


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


@pytest.mark.parametrize("path", ["narrow", "tiled"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sanitize_whole_step(path: str, precision: str) -> None:
    fastgan_backend.module.set_layer_path(path)
    generator = nn.Sequential(nn.Linear(5, 33), nn.BatchNorm1d(33), nn.ReLU(), nn.Dropout(0.3), nn.Linear(33, 6))
    step = twin(TrainStep, generator, MLP([8, 33, 1]), adam, num_classes=2, ema_decay=0.9, precision=precision)
    real, labels = torch.randn(9, 6), torch.arange(9) % 2
    for _ in range(3):
        assert all(value.isfinite() for value in step.step(real, labels))


def test_memory_is_given_back() -> None:
    call = network()
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(5):
        call()
    assert torch.cuda.memory_allocated() == before


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_second_gpu() -> None:
    with torch.device("cuda:1"):
        results = [*losses()(), *network()()]
    assert {t.device.index for t in results} == {1}
    assert torch.cuda.current_device() == 0


def test_info_names_the_gpu() -> None:
    info = fastgan.info()
    assert info["backends"]["cuda"] == "available"
    assert info["build"]["cuda"]
