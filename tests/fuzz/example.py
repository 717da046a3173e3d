"""One example: a description, then statements, after each of which the three worlds are compared."""

from __future__ import annotations

import contextlib
import copy
import json
import warnings
from collections.abc import Sequence
from typing import Any, TextIO

import simt_backend
import torch
from torch import Tensor

import fastgan

from . import process as process_module
from . import surgery_hooks, surgery_modules, surgery_optimizers, surgery_parameters, surgery_step, training
from . import worlds as worlds_module
from .networks import LATENT
from .statements import PROCESS, STEPS, WORLD, NotHere, generator_of
from .worlds import RELATIVE, World, difference, gradients, outcome, picture, rounding

TABLES = (surgery_hooks, surgery_modules, surgery_optimizers, surgery_parameters, surgery_step, training)
NAMES = (*STEPS, *WORLD, *PROCESS)
BACKENDS = ("auto", "cpu", "simt")
REFUSALS = (ValueError, TypeError, RuntimeError)  # of a constructor, where a description makes no sense


OPTIONS = (
    *("loss", "real_target", "fake_target", "d_steps", "reuse_fake", "r1_gamma", "r1_every"),
    *("r2_gamma", "gp_weight", "gp_center", "pac", "clip_grad_norm", "instance_noise", "instance_noise_steps"),
    *("num_classes", "ema", "ema_decay", "precision"),
)


# What the loop in plain PyTorch alone refuses.
_PLAIN_ALONE = (
    "modified by an inplace operation",
    "In-place leakyReLu",
    "backward through the graph a second time",
    "Inference tensors cannot be saved for backward",  # of real data, which needs no gradient
)


class Fault(Exception):
    """Two worlds differ; the message says where and how."""


class Example:
    """Three worlds and what was done to them; a context manager, since it changes what the process shares."""

    def __init__(
        self,
        description: dict[str, Any],
        backend: str = "auto",
        trace: TextIO | None = None,
        without: Sequence[str] = (),
    ) -> None:
        """Build the worlds.

        Args:
            description: as networks.build takes it.
            backend: `auto`, `cpu` or `simt`.
            trace: gets each statement as a line of JSON before it runs, for the case that it is the last.
            without: steps that are left out, as "name=text": where what they do, in words, holds the text.
        """
        self.description, self.backend, self.trace = description, backend, trace
        self.without = [tuple(each.split("=", 1)) for each in without if "=" in each]
        self.log: list[str] = []  # what was done, in words
        self.steps = self.native_steps = 0
        self.sound = False  # whether a step on usual inputs would run: one has, and nothing was done since
        self._stack = contextlib.ExitStack()
        self._process = process_module.Process(backend == "simt")
        self._write(["build", description])

    def __enter__(self) -> Example:
        self._stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        backend = simt_backend.use_simt() if self.backend == "simt" else fastgan.use_backend(self.backend)
        self._stack.enter_context(backend)
        self._stack.callback(self._process.undo.close)
        try:
            self.worlds, full = worlds_module.worlds(self.description)
        except Exception:
            self._stack.close()
            raise
        for world in self.worlds:
            world.kept.update(batch=full["batch"], description=self.description)
        self.engine, self.composed, self.plain = self.worlds
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def run(self, name: str, number: int) -> None:
        """Run a statement in every world.

        Raises:
            Fault: the worlds differ.
        """
        self._write([name, number])
        try:
            self.sound = self.sound and name in (*STEPS, "read_plan")
            if name in PROCESS:
                self.log.append(PROCESS[name](self._process, generator_of(name, number)))
            elif name in WORLD:
                self._surgery(name, number)
            else:
                self._step(name, number)
        except NotHere:
            pass

    def _write(self, line: Any) -> None:
        if self.trace is not None:
            self.trace.write(json.dumps(line) + "\n")
            self.trace.flush()

    def _surgery(self, name: str, number: int) -> None:
        if name == "fresh_start":
            self._take_plain_up()
        results = []
        absent = 0
        for world in self.worlds:
            torch.manual_seed(number)
            try:
                results.append(outcome(lambda world=world: WORLD[name](world, generator_of(name, number))))
            except NotHere:
                absent += 1
        if absent:
            if absent != len(self.worlds):
                self._drop_plain_or_fault(f"{name}: possible in some worlds alone")
            raise NotHere
        self.log.append(" ".join(results[0]))
        if results[0] != results[1]:
            raise Fault(f"{name}: {results[0]} with the engine, {results[1]} composed")
        if results[-1] != results[0]:
            self._drop_plain()

    def _drop_plain_or_fault(self, message: str) -> None:
        if len(self.worlds) == 3:
            return self._drop_plain()
        raise Fault(message)

    def _drop_plain(self) -> None:
        """The loop in plain PyTorch cannot follow, e.g. since an error stopped the others amid a step."""
        self.worlds = self.worlds[:2]

    def _take_plain_up(self) -> None:
        """With new networks it can follow again."""
        if len(self.worlds) == 2:
            trainer, model = self.plain.trainer, self.composed.trainer
            for name in OPTIONS:
                setattr(trainer, name, getattr(model, name))
            trainer.count, trainer.lost = model.steps_done, False
            self.worlds.append(self.plain)

    def _step(self, name: str, number: int) -> None:
        self.relative = max(RELATIVE, 100 * rounding(self.composed))
        if self.worlds[0].kept["batch"] == 2 and "bn" in json.dumps(self.description):
            self.relative = max(self.relative, 1e-6)  # of two samples it divides their difference by itself
        self.had_gradients = {path for path, _, grad in gradients(self.engine) if grad is not None}
        results: list[tuple[str, Any]] = []
        states = []
        befores, inputs = [], []
        for world in self.worlds:
            what, given, *mode = STEPS[name](world, generator_of(name, number))
            if any(name == left_out and text in what for left_out, text in self.without):
                raise NotHere
            if world is self.engine:
                self.log.append(f"{name} on {what}" if not mode else f"{name} {what}")
            befores.append(frozen(world) if name == "step_on_wrong" and not world.is_plain else None)
            if world.is_plain:
                # The loop asks for the default device by itself.
                if results[0][0] == "raised" or what == "in meta device":
                    if name != "step_on_wrong":  # which changes nothing
                        self._drop_plain()
                    break
                self._fit(given)
            torch.manual_seed(number)
            with mode[0]() if mode else contextlib.nullcontext():

                def call(world: World = world, given: dict[str, Any] = given) -> Any:
                    return world.trainer.step(**given)

                results.append(outcome(lambda call=call: training.in_thread(call) if "thread" in name else call()))
            states.append(torch.get_rng_state())
            inputs.append(given)
        ours, theirs = results[:2]
        self.steps += 1
        self.native_steps += self.engine.is_native() and ours[0] == "returned"
        if ours[0] != theirs[0] or (ours[0] == "raised" and ours[1] != theirs[1]):
            raise Fault(f"the engine {_told(ours)}; composed {_told(theirs)}")
        for key, value in inputs[0].items() if name in ("step", "step_on_unusual") else ():
            if found := difference(value, inputs[1][key], self.relative):
                raise Fault(f"{key} {found} after the step, by the engine against composed")
        self._compare(results, states, befores)

    def _compare(self, results: list[tuple[str, Any]], states: list[Tensor], befores: list[Any]) -> None:
        ours, theirs = results[:2]
        if ours[0] == "raised" and ("check", "raised") in self.without:
            return self._drop_plain()
        self._same(self.engine, self.composed)
        if ours[0] == "raised":
            self.log[-1] += f": {ours[1][:150]}"
            for world, before in zip(self.worlds, befores, strict=False):
                if before is not None and self.sound:
                    for (key, value), (_, old) in zip(frozen(world), before, strict=False):
                        if found := difference(value, old, 0.0):
                            raise Fault(f"{world.name} raised {ours[1][:100]} and changed {key}: it {found}")
            return
        self.sound = True
        if found := difference(tuple(ours[1]), tuple(theirs[1]), self.relative):
            raise Fault(f"the statistics of the engine {found}, composed")
        if not torch.equal(states[0], states[1]):
            raise Fault("the random state of the engine differs from that composed")
        kept = self.had_gradients
        for (path, is_held, own), (_, _, other) in zip(gradients(self.engine), gradients(self.composed), strict=True):
            # The engine keeps none; what no optimizer holds is nobody's business.
            if own is not None and (other is None or difference(own, other, self.relative)):
                raise Fault(f"{path}.grad {'is stale' if other is None else difference(own, other, self.relative)}")
            if own is None and path in kept and not is_held:
                raise Fault(f"{path}.grad is gone, and no optimizer holds it")
        if len(results) == 3 and self.worlds[2].trainer.lost:
            self._drop_plain()
        elif len(results) == 3:
            if results[2][0] == "raised":
                # The fused layers run where torch refuses a layer that works in place on what it would need again; and
                # a step goes back to the parameters alone, where the loop walks the graph of real data once a D step.
                if any(text in results[2][1] for text in _PLAIN_ALONE):
                    return self._drop_plain()
                raise Fault(f"the loop in plain PyTorch {_told(results[2])}; the engine and composed do not")
            # The loop puts real data and fakes through D one after the other: the one's class is not the other's.
            plain = [[value.as_subclass(Tensor) for value in result[1]] for result in (theirs, results[2])]
            if found := difference(*plain, self.relative):
                raise Fault(f"the statistics composed {found}, in plain PyTorch")
            self._same(self.composed, self.worlds[2])
        self._settle()

    def _same(self, ours: World, theirs: World) -> None:
        """Everything that a step may change is the same."""
        in_order = ("check", "order") not in self.without
        a, b = list(picture(ours, in_order)), list(picture(theirs, in_order))
        told = f"({ours.name}{', native' if ours.is_native() else ''}, against {theirs.name})"
        for (name, value), (other_name, other) in zip(a, b, strict=False):
            if theirs.is_plain and name.startswith("calls of"):
                break
            if name != other_name:
                raise Fault(f"{name} where {other_name} should be {told}")
            if found := difference(value, other, self.relative):
                raise Fault(f"{name} {found} {told}")
        if len(a) != len(b) and not theirs.is_plain:
            raise Fault(f"{len(a)} things where {len(b)} should be {told}")

    def _settle(self) -> None:
        """After a step with more rounding than that of float64, all go on from the same values."""
        pairs = list(zip(*(picture(world, False) for world in self.worlds), strict=False))
        if self.relative == RELATIVE:
            return
        with torch.no_grad():
            for (_, ours), (_, theirs), *rest in pairs:
                for value in (ours, *(v for _, v in rest)):
                    if isinstance(value, Tensor) and value.dtype.is_floating_point and not torch.equal(value, theirs):
                        value.copy_(theirs)

    def _fit(self, given: dict[str, Any]) -> None:
        """Inputs as the loop in plain PyTorch takes them: labels of int64, noise that is there."""
        if given.get("labels") is not None:
            given["labels"] = given["labels"].long()
        if given["noise"] is None:
            of = training.sizes(self.worlds[2])
            given["noise"] = _Drawn(of["rows"], given["real"].shape[-2], LATENT, given["real"].dtype)


class _Drawn:
    """Noise that is drawn when it is first asked for, after the seed was set."""

    def __init__(self, rows: int, batch: int, width: int, dtype: torch.dtype) -> None:
        self._shape, self._dtype = (rows, batch, width), dtype
        self._noise: Tensor | None = None

    def __getitem__(self, at: int) -> Tensor:
        if self._noise is None:
            self._noise = torch.randn(self._shape, dtype=self._dtype)
        return self._noise[at]


def _told(result: tuple[str, Any]) -> str:
    return f"raises {result[1][:250]}" if result[0] == "raised" else "runs"


def frozen(world: World) -> list[tuple[str, Any]]:
    """The picture of a world, its tensors copied."""

    def held(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().clone().requires_grad_(value.requires_grad)
        return copy.copy(value)

    return [(name, held(value)) for name, value in picture(world)]
