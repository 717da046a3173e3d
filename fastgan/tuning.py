"""Which way a `TrainStep` takes for a size of batch: measured on copies, kept on disk and in its state.

The ways of a step give the same results up to rounding. On CUDA they are the engine's kernels for the layers: a narrow
network in one launch or a launch a layer, and of each product a tiled kernel, in so many parts, or the library's. On
a CPU they are the engine, and the step composed of fused ops with products of either kind. Whole steps are timed, so
that each product finds the caches as the step leaves them.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from fastgan import backend, choices, device_cache, plan_scratch, plan_ways, tuning_job
from fastgan.choices import Clock, CudaClock
from fastgan.engine import Plan
from fastgan.step_options import StepOptions, StepParts
from fastgan.tuning_trial import Inputs, Trial

CACHE = "choices"  # the kind of its entries in device_cache
# Of a step on the CPU, above which a single one takes so long that no other way can be tried in time: 0.3 s and more.
_MOST_FLOPS_A_THREAD = 4e10


@dataclass(frozen=True)
class Choice:
    """What was decided for one signature; as JSON has it in the cache and in a TrainStep's state.

    Attributes:
        way: the name of a plan_ways.Way.
        over: the name of the way that it was held against; empty where it was held against none.
        ratio: how many times as fast it is as that.
        spread: of the ratio, the distance between its quartiles.
        seconds: that a step takes.
        tried: how many ways were timed against another.
        took: seconds that the timing took.
        why: where nothing was timed, the reason.
    """

    way: str = "default"
    over: str = ""
    ratio: float = 1.0
    spread: float = 0.0
    seconds: float = 0.0
    tried: int = 0
    took: float = 0.0
    why: str = ""


def read(value: Any) -> Choice:
    """A Choice from what JSON has of it.

    Raises:
        ValueError: it is not of that form.
    """
    kinds = {field.name: type(field.default) for field in fields(Choice)}
    if not isinstance(value, Mapping) or set(value) != set(kinds):
        raise ValueError(f"a choice must have {', '.join(kinds)}, but it is {value!r}")
    for name, kind in kinds.items():
        if type(value[name]) is not kind and not (kind is float and type(value[name]) is int):
            raise ValueError(f"a choice's {name} must be a {kind.__name__}, not {value[name]!r}")
    plan_ways.parse(value["way"])
    return Choice(**value)


class Choices:
    """The choices of a TrainStep, by signature.

    Attributes:
        made: those made, by signature.
    """

    def __init__(self) -> None:
        self.made: dict[str, Choice] = {}
        self._loaded: frozenset[str] = frozenset()
        self._is_deciding = False

    def are_wanted(self) -> bool:
        """Whether a plan is to ask for its way."""
        return choices.is_on() or bool(self.made)

    def state(self) -> dict[str, dict[str, Any]]:
        """The choices, as JSON has them."""
        return {signature: asdict(choice) for signature, choice in self.made.items()}

    def load(self, state: Any) -> None:
        """Take the choices of a `state`.

        Raises:
            TypeError, ValueError: it is none; nothing was taken.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"the choices of a state must be a dict, not {type(state).__name__}")
        self.made = {str(signature): read(value) for signature, value in state.items()}
        self._loaded = frozenset(self.made)

    def decide(self, plan: Plan, make: Callable[[StepParts, StepOptions], Any], inputs: Inputs, *of: Any) -> bool:
        """Tell a plan the way for a size of batch that it was Undecided about.

        Args:
            plan: the one that asked.
            make: a TrainStep of parts and options.
            inputs: of the step, which the plan takes.
            of: the parts and the options of the step.

        Returns:
            Whether it was told. Else the step must run by default for once: while a CUDA graph is captured, nothing can
            be timed.

        Raises:
            RuntimeError: another thread is in this.
        """
        batch = inputs[0].shape[-2]
        signature = plan.signature(batch)
        choice = self.made.get(signature)
        if choice is None and choices.is_on():
            if plan.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                return False
            if self._is_deciding:
                raise RuntimeError("another thread is in this TrainStep; a step is one thread's at a time")
            self._is_deciding = True
            try:
                choice = self.made[signature] = _found(plan, make, inputs, signature, *of)
            finally:
                self._is_deciding = False
        plan.take(batch, plan_ways.parse((choice or Choice()).way))
        return True

    def text(self, plan: Plan) -> str:
        """What a plan's line says of its ways."""
        parts = []
        for batch, way in ((batch, way) for (batch, _), way in plan.ways.items()):
            signature = plan.signature(batch)
            choice = self.made.get(signature)
            if choice is None or choice.way != way.name:
                continue
            text = f"at batch {batch} {way.words()}"
            if choice.over:
                where = "in the state that was loaded" if signature in self._loaded else "measured here"
                text += f" ({choice.ratio:.2f} times as fast as {plan_ways.parse(choice.over).words()}, {where})"
            elif choice.why:
                text += f" ({choice.why})"
            parts.append(text)
        return "; ".join(parts)


@contextlib.contextmanager
def layers_of_ops(path: str) -> Iterator[None]:
    """In a `with` block, the layer path of the ops that this thread runs; an empty one is the usual."""
    if path:
        backend.module.set_thread_layer_path(path)
    try:
        yield
    finally:
        if path:
            backend.module.set_thread_layer_path("")


def clock_of(device: torch.device) -> Clock:
    """What ways are timed by on a device."""
    return CudaClock() if device.type == "cuda" else Clock()


def _found(
    plan: Plan, make: Callable[..., Any], inputs: Inputs, signature: str, parts: StepParts, options: StepOptions
) -> Choice:
    """From the job, the cache or a measurement."""

    def own() -> Choice:
        if known := _cached(plan.device, signature):
            return known
        if torch.are_deterministic_algorithms_enabled():
            return Choice(why="nothing is timed where torch.use_deterministic_algorithms is on")
        flops = 16.0 * inputs[0].shape[-2] * plan.weights * options.d_steps
        if not plan.runs_cuda_kernels() and flops > _MOST_FLOPS_A_THREAD * torch.get_num_threads():
            return Choice(why="a step takes too long for others to be timed beside it")
        choice, why = None, ""
        try:
            choice = _measured(plan, make, inputs, parts, options)
        except Exception as error:  # such as no memory for the copies
            why = f"nothing could be timed: {type(error).__name__}"
        if plan.device.type == "cuda":
            torch.cuda.empty_cache()  # of the copies, and of the graphs that were captured of them
        if choice is None:
            return Choice(why=why)
        if other := _cached(plan.device, signature):
            return other  # another process was first: all runs from now on take the same
        device_cache.merge(CACHE, plan.device, {signature: asdict(choice)})
        return choice

    agreed = tuning_job.agreed(signature, lambda: asdict(own()))
    try:
        return read(agreed)
    except ValueError:
        return Choice(why="the processes of this job did not agree on a choice")


def _measured(plan: Plan, make: Callable[..., Any], inputs: Inputs, parts: StepParts, options: StepOptions) -> Choice:
    with _as_before(plan.device):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is to be said of the networks was said of the user's
            # Most steps are without the penalties that are lazy.
            lazy: dict[str, Any] = {} if options.r1_every == 1 else {"r1_gamma": 0.0, "r2_gamma": 0.0}
            step = make(plan_scratch.copies(parts), replace(options, **lazy))
        found = Trial(step, inputs, clock_of(plan.device)).verdict()
    why = "" if found.over else "no other way could be timed in the time that there is for it"
    return Choice(found.name, found.over, found.ratio, found.spread, found.seconds, found.tried, found.took, why)


def _cached(device: torch.device, signature: str) -> Choice | None:
    try:
        return read(device_cache.load(CACHE, device)[signature])
    except (KeyError, ValueError):
        return None


@contextlib.contextmanager
def _as_before(device: torch.device) -> Iterator[None]:
    """In a `with` block, a device is the current one and its random state may move on; afterwards all is as it was."""
    if device.type != "cuda":
        with torch.random.fork_rng(devices=[]):
            yield
        return
    with torch.cuda.device(device), torch.random.fork_rng(devices=[torch.cuda.current_device()]):
        yield
