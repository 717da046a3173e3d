"""What the tests share: the backends that a test runs on, the seed, the suite's settings, hypothesis's profile."""

from __future__ import annotations

import collections
import contextlib
import gc
import inspect
import os
import zlib
from collections.abc import Iterator
from typing import Any

import clean_environment  # by its name the first: what follows reads the environment
import coverings
import extent
import pytest
import simt_backend
import torch
from around_tests import pytest_runtest_protocol as pytest_runtest_protocol  # a hook, as the next is
from around_tests import pytest_unconfigure as pytest_unconfigure
from hypothesis import HealthCheck, settings

import fastgan
from fastgan import backend as fastgan_backend

assert clean_environment.CAME_FIRST, "fastgan was imported before clean_environment.py, and has read the environment"


def listed(setting: str) -> tuple[str, ...]:
    return tuple(filter(None, os.environ.get(setting, "").split(",")))


REQUIRED = listed("FASTGAN_REQUIRE_BACKENDS")

# A backend joins the conformance suite by an entry here. `auto` is what users have: the compiled kernels, by shorter
# ways where there are any. `simt` is the CUDA kernels and their bindings, run on the host model of tests/simt/; `cuda`
# is there where a GPU is, and its tests make their tensors on it (see run_on).
BACKENDS = ("reference", "cpu", "simt", "auto", *(("cuda",) if torch.cuda.is_available() or "cuda" in REQUIRED else ()))

# The suite's own setting; without subnormal numbers hypothesis must not draw any.
DENORMALS = os.environ.get("FASTGAN_TEST_FLUSH_DENORMAL") != "1"

# A bound that holds by luck alone on one processor fails on the next one, or with another seed.
SEED = int(os.environ.get("FASTGAN_TEST_SEED", "0"))

settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("repeatable")


def unavailable_reason(name: str) -> str | None:
    """Why a backend cannot run here, in a sentence; None where it can."""
    return simt_backend.unavailable_reason() if name == "simt" else fastgan_backend.unavailable_reason(name)


@contextlib.contextmanager
def run_on(name: str, largest_cluster: int = simt_backend.LARGEST_CLUSTER) -> Iterator[None]:
    """The backend in force and, for `cuda`, the GPU as the device of new tensors; `simt` has clusters, or none."""
    with contextlib.ExitStack() as stack:
        simt = name == "simt"
        stack.enter_context(simt_backend.use_simt(largest_cluster) if simt else fastgan.use_backend(name))
        if name == "cuda":
            stack.enter_context(torch.device("cuda"))
        yield


@contextlib.contextmanager
def run_on_or_skip(name: str, largest_cluster: int = simt_backend.LARGEST_CLUSTER) -> Iterator[str]:
    """As run_on; where the backend cannot run, the test is skipped, or fails if the backend is required."""
    if reason := unavailable_reason(name):
        if name in REQUIRED:
            pytest.fail(f"backend {name} is required, but {reason}")
        pytest.skip(reason)
    with run_on(name, largest_cluster):
        yield name


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on every backend; of `simt` every other test, by its name, on a device without clusters.

    Kernels, and what a step takes by default, are others there.
    """
    has_clusters = zlib.crc32(request.node.nodeid.encode()) % 2 == 0
    with run_on_or_skip(request.param, simt_backend.LARGEST_CLUSTER if has_clusters else 1) as name:
        yield name


@pytest.fixture
def engine_backend(backend: str) -> str:
    """The backends that have an engine for whole steps."""
    if backend == "reference":
        pytest.skip("the reference has no engine")
    return backend


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tensors so small that they gain nothing from a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def compiled() -> Iterator[None]:
    """For tests of what only the compiled ops have."""
    with run_on_or_skip("cpu"):
        yield


@pytest.fixture(scope="session", autouse=True)
def verified() -> None:
    """What the first use of a family does (fastgan/gate.py), before the tests; test_verification.py has its tests."""
    if fastgan_backend.module is not None:
        simt_backend.verify_beforehand(torch.device("cpu"))
        if "cuda" in BACKENDS and unavailable_reason("cuda") is None:
            simt_backend.verify_beforehand(torch.device("cuda", torch.cuda.current_device()))


@pytest.fixture(params=[name for name in BACKENDS if name in ("cpu", "cuda")])
def compiled_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The same, once on every device of the compiled ops."""
    with run_on_or_skip(request.param) as name:
        yield name


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(SEED)


def forget_absent_devices() -> None:
    """torch.manual_seed keeps its seed for the devices that may yet be there, each with the stack of its caller as
    text: a millisecond and more a call, of which the tests make hundreds of thousands."""
    for device in (torch.cuda, torch.xpu, torch.mtia):
        if not device.is_available():
            device.manual_seed_all = lambda seed: None


def pytest_configure(config: pytest.Config) -> None:
    forget_absent_devices()
    if os.environ.get("FASTGAN_TESTS", "") not in ("", "full"):
        raise pytest.UsageError(f"FASTGAN_TESTS must be full or not set, not {os.environ['FASTGAN_TESTS']!r}")
    unknown = set(listed("FASTGAN_TEST_BACKENDS")) - set(BACKENDS)
    if unknown:
        raise pytest.UsageError(
            f"FASTGAN_TEST_BACKENDS must name backends of {', '.join(BACKENDS)}, not {unknown.pop()}"
        )
    # Workers share the cores: a team of threads in each would wait for the others' at every barrier.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if threads := os.environ.get("FASTGAN_TEST_THREADS"):
        torch.set_num_threads(int(threads))
    elif workers > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    if not DENORMALS and not torch.set_flush_denormal(True):
        raise pytest.UsageError("FASTGAN_TEST_FLUSH_DENORMAL: this processor cannot flush denormal numbers")


def pytest_report_header() -> str:
    found = [name for name in os.environ if name in clean_environment.SETTINGS or name.startswith("OMP_")]
    build = fastgan.info()["build"]
    return (
        f"fastgan: {build['cpu_instructions'] if build else 'not compiled'}, {torch.get_num_threads()} threads"
        f"{''.join(f', {name}={os.environ[name]}' for name in sorted(found))}"
    )


def given(item: pytest.Item, parameter: str) -> Any:
    """The value that a test is parametrised with; None where it has no such parameter."""
    return item.callspec.params.get(parameter) if hasattr(item, "callspec") else None


# The fixtures whose parameter is a backend.
OF_BACKENDS = ("backend", "compiled_backend", "device_backend", "place", "forward_place")
PLACE = pytest.StashKey[int]()


def parameter_of(item: pytest.Item) -> str | None:
    """The backend that a test is parametrised with."""
    return next((name for fixture in OF_BACKENDS if (name := given(item, fixture)) is not None), None)


def backend_of(item: pytest.Item) -> str | None:
    """The backend that a test is made for; None where that is no matter of its parameters."""
    if item.path.name in ("test_gpu.py", "test_gpu_step.py"):
        return "cuda"
    return parameter_of(item) or ("cpu" if "compiled" in item.fixturenames else None)


def is_apart(item: pytest.Item) -> bool:
    """Whether the test treats this combination of its parameters in another way than the rest."""
    functions = [marker.args[0] for marker in item.iter_markers("apart")]
    return any(f(*(given(item, name) for name in inspect.signature(f).parameters)) for f in functions)


def of_pairs(items: list[pytest.Item]) -> set[str]:
    """The tests that run where not all do: of a test's parameters all pairs of values. On `reference`, which has no
    kernels, on `cpu` beside `auto`, whose kernels are the same, on a chosen instruction set, for which the same sources
    are compiled, and of tests marked each_value, each value.

    Each setting of the processor has a choice of its own, so that together they have more than pairs.
    """
    products: dict[tuple[Any, ...], list[tuple[str, dict[str, int]]]] = {}
    few: dict[tuple[Any, ...], bool] = {}
    for item in items:
        values = item.callspec.params if hasattr(item, "callspec") else {}
        case = {name: id(value) for name, value in values.items() if name not in OF_BACKENDS or value not in BACKENDS}
        test, backend = (item.path, getattr(item, "originalname", item.name)), parameter_of(item)
        product = (test, backend, item.get_closest_marker("deep") is None, is_apart(item))
        products.setdefault(product, []).append((item.nodeid, case))
        few[product] = item.get_closest_marker("each_value") is not None
    beside_auto = {test for test, backend, *_ in products if backend == "auto"}
    again = bool(os.environ.get("FASTGAN_ISA"))
    salt = " ".join(os.environ.get(name, "") for name in ("FASTGAN_ISA", "FASTGAN_TEST_THREADS"))
    kept: set[str] = set()
    for product, cases in products.items():
        test, backend, *_ = product
        each = again or few[product] or backend == "reference" or (backend == "cpu" and test in beside_auto)
        kept |= coverings.covering(cases, 1 if each else 2, salt)
    return kept


def beside_each_other(items: list[pytest.Item]) -> list[pytest.Item]:
    """The tests of one case on several backends one after the other, on one worker: so what they are compared with is
    computed once, where it is kept."""
    first: dict[Any, int] = {}
    for i, item in enumerate(items):
        values = item.callspec.params if hasattr(item, "callspec") else {}
        case = tuple(sorted((name, id(value)) for name, value in values.items() if name not in OF_BACKENDS))
        item.stash[PLACE] = first.setdefault((item.path, getattr(item, "originalname", item.name), case), i)
    return sorted(items, key=lambda item: item.stash[PLACE])


@pytest.hookimpl(tryfirst=True)  # before -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # The reference has no engine: with one and without is the same test.
    items[:] = [item for item in items if not (parameter_of(item) == "reference" and given(item, "engine") is True)]
    for item in items:
        for kind in ("deep", "full"):
            if any(backend_of(item) in marker.args for marker in item.iter_markers(f"{kind}_on")):
                item.add_marker(kind)
        if parameter_of(item) == "cpu" and "compiled_backend" not in item.fixturenames:  # which `auto` is none of
            item.add_marker(pytest.mark.twin)
    chosen = listed("FASTGAN_TEST_BACKENDS")
    small = items if extent.FULL else [item for item in items if item.get_closest_marker("full") is None]
    names = {item.nodeid for item in items} if extent.FULL else of_pairs(small)
    kept, left = [], []
    for item in items:
        other = bool(chosen) and backend_of(item) not in chosen
        above = item.get_closest_marker("above_kernels") is not None and item.get_closest_marker("twin") is None
        same = bool(os.environ.get("FASTGAN_ISA")) and above
        (left if other or same or item.nodeid not in names else kept).append(item)
    items[:] = beside_each_other(kept)
    if left:
        config.hook.pytest_deselected(items=left)


def pytest_collection_finish() -> None:
    """What the collection made stays: the garbage collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


# How many tests each file leaves to another command, for the end of the report. Each worker of xdist collects all.
left_out: collections.Counter[str] = collections.Counter()


def pytest_deselected(items: list[pytest.Item]) -> None:
    left_out.update(item.path.name for item in items)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    left_out.update(getattr(node, "workeroutput", {}).get("left_out", {}) if not left_out else {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not left_out:
        return
    options = {"-m": config.option.markexpr, "-k": config.option.keyword}
    marks = [f"{name} {value!r}" for name, value in options.items() if value]
    marks += [f"{name}={os.environ[name]}" for name in ("FASTGAN_TEST_BACKENDS", "FASTGAN_ISA") if name in os.environ]
    marks += [] if extent.FULL else ["what FASTGAN_TESTS=full has beside"]
    terminalreporter.section("tests that this selection leaves out")
    terminalreporter.write_line(
        f"{sum(left_out.values())} by {' and '.join(marks) or 'the command line'}: "
        + ", ".join(f"{file} {count}" for file, count in sorted(left_out.items()))
    )
