"""The ways of a step, timed on copies of what it trains."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastgan import plan_ways
from fastgan.choices import Clock, Runs, Tournament, Verdict
from fastgan.engine import Plan
from fastgan.plan_ways import LIBRARY, TILED, Product, Way

_PARTS = (1, 2, 4, 8, 16)  # in which a tiled product is tried

Inputs = tuple[Tensor, Tensor | None, Tensor | None]


class _Same(Exception):
    """A way that launches what another one does."""


class Trial:
    """The ways of a step on copies, warmed up and timed."""

    def __init__(self, step: Any, inputs: Inputs, clock: Clock) -> None:
        self._step, self._clock = step, clock
        real, labels, noise = (None if value is None else value.detach().clone() for value in inputs)
        assert real is not None
        self._inputs: Inputs = real, labels, noise
        self._batch = inputs[0].shape[-2]
        self._launched: dict[str, tuple[bool, dict[Product, bool]]] = {}  # by name of the way
        self._seen: set[Any] = set()
        self._on_cuda = False

    def verdict(self) -> Verdict:
        """The best way, and by how much."""
        tournament = Tournament(Way().name, self._prepare, self._clock)
        if self._on_cuda:
            self._challenge_on_cuda(tournament)
        else:
            for path in ("library", "narrow"):
                tournament.challenge(Way(composed=path).name)
        return tournament.verdict()

    def _challenge_on_cuda(self, tournament: Tournament) -> None:
        """First what concerns all products, then each, those with the most operations first."""
        narrow, _ = self._launched[tournament.default]
        tournament.challenge(Way(narrow=not narrow).name)
        for start in [plan_ways.parse(name) for name in sorted(self._launched, key=lambda n: n != tournament.best)]:
            for kind in (LIBRARY, TILED):
                products = tuple((product, kind) for product in sorted(self._launched[start.name][1]))
                tournament.challenge(Way(narrow=start.narrow, products=products).name)
        for product in sorted(self._launched[tournament.best][1], key=lambda p: -p[1] * p[2] * p[3]):
            best = plan_ways.parse(tournament.best)
            is_library = self._launched[tournament.best][1][product]
            tournament.challenge(best.with_product(product, TILED if is_library else LIBRARY).name)
            if not self._launched[tournament.best][1][product]:
                for parts in _PARTS:
                    tournament.challenge(plan_ways.parse(tournament.best).with_product(product, parts).name)

    def _prepare(self, name: str) -> Runs:
        way = plan_ways.parse(name)
        plan = self._enter(way)
        if way.composed:
            self._step.step(*self._inputs)
        elif plan.run(*self._inputs) is None:
            raise RuntimeError("the engine does not take the copies")
        self._on_cuda = plan.runs_cuda_kernels()
        if self._on_cuda:
            launched = plan.taken()
            parts = frozenset(product for product in way.products if product[1] > 0)
            if (alike := (frozenset(launched[1].items()), parts)) in self._seen:
                raise _Same
            self._seen.add(alike)
            self._launched[name] = launched
            self._step.step(*self._inputs)  # which captures it

        def run() -> None:
            self._step.step(*self._inputs)

        def runs(times: int) -> float:
            self._enter(way)
            return self._clock.time(name, run, times)

        return runs

    def _enter(self, way: Way) -> Plan:
        """The copies' plan, set to a way. Steps may make it anew."""
        plan: Plan | None = self._step._current_plan()
        if plan is None:
            raise RuntimeError("there is no plan for the copies")
        plan.take(self._batch, way)
        return plan
