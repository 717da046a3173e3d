"""Steps that run by a plan of the engine where there is one: how that is made, kept and made anew."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from fastgan import checks
from fastgan.engine import CannotPlan, Plan
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
    _draws_bits = False  # see Plan; of a class, and not of a step, so that no plan is out of date by it

    def __del__(self) -> None:
        # The plan holds the dictionary of this step, which holds the plan; and no collector sees into the plan.
        self.__dict__.pop("_plan", None)

    def _begin_without_plan(self, options: Options) -> None:
        self.steps_done = 0
        self._plan: Plan | None = None
        self._planned_options: Options = options  # those of the plan
        self._no_plan, self._plan_again = "", 0

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
            self._plan = Plan(self._parts_in_force(), self._planned_options, vars(self), self._draws_bits)
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
