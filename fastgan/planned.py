"""Steps that run by a plan of the engine where there is one: how that is made, kept and made anew."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Generic, TypeVar

from torch import Tensor

from fastgan import checks
from fastgan.engine import CannotPlan, Plan
from fastgan.processes import Processes, synchronisable
from fastgan.step_options import DiscriminatorOptions, DiscriminatorParts, StepOptions, StepParts

# Steps between two attempts at a plan where there was none: a hook may have been removed, a module replaced.
_PLAN_AGAIN = 100

Options = TypeVar("Options", StepOptions, DiscriminatorOptions)


class Planned(ABC, Generic[Options]):
    """A step with a plan, or the reason why there is none.

    Attributes:
        steps_done: by this step, or by the one whose state it has loaded.
        engine: whether there may be a plan.
    """

    steps_done: int
    engine: bool
    _processes: Processes | None
    _draws_bits = False  # see Plan; of a class, and not of a step, so that no plan is out of date by it

    def __del__(self) -> None:
        # The plan holds the dictionary of this step, which holds the plan; and no collector sees into the plan.
        self.__dict__.pop("_plan", None)

    def _begin_without_plan(self, options: Options) -> None:
        self.steps_done = 0
        self._plan: Plan | None = None
        self._planned_options: Options = options  # those of the plan
        self._no_plan, self._plan_again = "", 0
        self._processes = None
        self._is_composed_elsewhere = False

    @abstractmethod
    def _parts_in_force(self) -> StepParts | DiscriminatorParts:
        """What is trained: public attributes, which may have been set since."""

    @abstractmethod
    def _options(self) -> Options:
        """The options in force, checked: public attributes, which may have been set since."""

    def _is_planned(self, plan: Plan) -> None:
        """What else is to be done with a plan that was made."""

    def _current_plan(self) -> Plan | None:
        """The plan for the networks and optimizers as they are, or None."""
        if self._plan is not None and self._plan.is_current():
            return self._plan
        if self._plan is None and self.steps_done < self._plan_again:
            return None
        self._plan = None
        self._plan_again = self.steps_done + _PLAN_AGAIN
        if not self.engine:
            self._no_plan = "engine is False"
            return None
        try:
            self._planned_options = self._options()
            self._plan = Plan(
                self._parts_in_force(), self._planned_options, vars(self), self._processes, self._draws_bits
            )
            self._is_planned(self._plan)
        except (CannotPlan, ValueError, TypeError) as reason:
            self._no_plan = str(reason)
        return self._plan

    def _plan_for_now(self) -> tuple[Plan | None, bool]:
        """The plan, current or not, if it runs the next step; and whether R1 and R2 are part of that."""
        are_due = self._planned_options.penalties_are_due(self.steps_done)
        runs = self._plan is not None and (self._plan.penalizes or not are_due)
        return self._plan if runs else None, are_due

    @staticmethod
    def _steps_done_of(state: Any, names: tuple[str, ...]) -> int:
        """The `steps_done` of a state dict that must have these names: TypeError or ValueError where it is none."""
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a dict, not {type(state).__name__}")
        if set(state) != set(names):
            has = ", ".join(map(str, state)) or "nothing"
            raise ValueError(f"state must have {' and '.join(names)}, but it has {has}")
        checks.integer("steps_done of the state", state["steps_done"], 0)
        return int(state["steps_done"])

    def _cannot_run(self, reason: Any) -> None:
        """Where the optimizers' state turns out to be other than the engine takes."""
        self._plan, self._no_plan = None, str(reason)
        self._plan_again = self.steps_done + _PLAN_AGAIN

    @property
    def process_group(self) -> Any:
        """The group of processes that take the steps together; None where this one does alone."""
        return None if self._processes is None else self._processes.group

    @property
    def processes(self) -> Processes | None:
        """Those that take the steps together; None where this one does alone."""
        return self._processes

    @property
    def sync_batch_norm(self) -> bool:
        """Whether, of several processes, BatchNorm's statistics are those of all their samples."""
        return self._processes is not None and self._processes.synchronises

    def check_processes(self) -> None:
        """Look whether all processes of the group have the same bits in their networks; every one must call it.

        Buffers are looked at where BatchNorm is synchronised: else each process has statistics of its own.

        Raises:
            ProcessesError: they have not; it names the first tensor that differs.
        """
        if self._processes is not None:
            self._processes.check_equal(self._shared_tensors(self._processes.synchronises))

    def _shared_tensors(self, with_buffers: bool = True) -> dict[str, Tensor]:
        """What every process has the same of, by name."""
        parts = self._parts_in_force()
        found: dict[str, Tensor] = {}
        for network in ("generator", "discriminator", "ema"):
            owner: Any = getattr(parts, network)
            if owner is None:
                continue
            named = [*owner.named_parameters(), *(owner.named_buffers() if with_buffers else ())]
            found.update({f"{network}.{name}": tensor for name, tensor in named})
        for optimizer_name, optimizer in parts.optimizers().items():
            held = [p for group in optimizer.param_groups for p in group["params"]]
            for i, parameter in enumerate(held):
                for key, value in optimizer.state.get(parameter, {}).items():
                    if isinstance(value, Tensor):
                        found[f"{optimizer_name}.{i}.{key}"] = value
        return found

    def _join(self, process_group: Any, sync_batch_norm: bool) -> None:
        """Take steps together with the other processes of a group, from what the first of them has."""
        if process_group is None:
            return
        parts = self._parts_in_force()
        held = (p for optimizer in parts.optimizers().values() for g in optimizer.param_groups for p in g["params"])
        processes = Processes(process_group, sync_batch_norm, next(held).device)
        if sync_batch_norm:
            synchronisable([n for n in (parts.generator, parts.discriminator) if n is not None])
        facts = {name: str(value) for name, value in asdict(self._options()).items()}
        for name, optimizer in parts.optimizers().items():
            facts[name] = f"{type(optimizer).__name__} of {[_numbers_of(group) for group in optimizer.param_groups]}"
        processes.begin(self._shared_tensors(), {**facts, "sync_batch_norm": str(sync_batch_norm)})
        self._processes = processes

    def _agree(self, problem: Exception | None, facts: dict[str, int], can_plan: bool) -> bool:
        """Whether all processes run the next step as one native call; see Processes.agree."""
        assert self._processes is not None
        all_can = self._processes.agree(problem, {"the number of steps done": self.steps_done, **facts}, can_plan)
        self._is_composed_elsewhere = can_plan and not all_can
        return all_can

    def _accepts(self, plan: Plan, *inputs: Any) -> bool:
        """Whether a plan takes inputs."""
        try:
            return plan.accepts(*inputs)
        except CannotPlan as reason:  # what it learns when the optimizers' state is made
            self._cannot_run(reason)
            return False

    def _refuse_copies(self) -> None:
        if self._processes is not None:
            raise TypeError("a step of several processes cannot be copied or pickled: make a new one in each process")

    def _of_processes(self) -> str:
        """What `plan` says of several processes."""
        if self._processes is None:
            return ""
        parts = self._parts_in_force()
        kind = ""
        if synchronisable([n for n in (parts.generator, parts.discriminator) if n is not None], refuses=False):
            kind = ", BatchNorm " + ("synchronised" if self._processes.synchronises else "each process's own")
        composed = "; composed, since another process cannot run it as one call" if self._is_composed_elsewhere else ""
        shared = "" if self._processes.shared is None else ", which share memory"
        return f"; rank {self._processes.rank} of {self._processes.size} processes{shared}{kind}{composed}"


def _numbers_of(group: dict[str, Any]) -> dict[str, Any]:
    """The options of an optimizer's group, but for its parameters, of which it has so many."""
    return {key: len(value) if key == "params" else value for key, value in group.items()}
