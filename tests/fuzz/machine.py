"""The state machine of hypothesis: which descriptions, and which statements in which order."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from .example import REFUSALS, Example, Fault
from .networks import ACTIVATIONS, KINDS, LINEARS, NORMS, OTHERS, PLAIN_ACTIVATIONS
from .statements import PROCESS, STEPS, WORLD

# How often which: most layers are such as the engine takes, or it would seldom run.
_TOKENS = st.one_of(
    st.sampled_from(LINEARS),
    st.sampled_from(PLAIN_ACTIVATIONS),
    st.sampled_from(LINEARS),
    st.sampled_from(ACTIVATIONS),
    st.sampled_from(NORMS),
    st.sampled_from((*NORMS, "bn", "bn", *LINEARS[:4])),
    st.sampled_from(("dropout 0.3", "dropout 0", *LINEARS[:4])),
    st.sampled_from((*OTHERS, *PLAIN_ACTIVATIONS * 3, *LINEARS * 3)),
)
_ENDS = st.lists(
    st.sampled_from((*ACTIVATIONS, "bn", "bn noaffine", "dropout 0.3", "dropout 0", "sigmoid")), max_size=2
)
_KINDS = st.sampled_from(("sequential",) * 6 + ("fused",) * 6 + ("mlp",) * 6 + ("subclass", "nested") * 3 + KINDS)
_FLAG = st.sampled_from((False, False, False, True))
_RARE = st.sampled_from((False,) * 15 + (True,))
_OPTIMIZERS = st.fixed_dictionaries(
    {},
    optional={
        "kind": st.sampled_from(("Adam",) * 20 + ("AdamW",) * 15 + ("SGD", "SGD momentum", "RMSprop", "NAdam", "own")),
        "groups": st.sampled_from((1, 2, 3)),
        "betas": st.sampled_from(([0.5, 0.999], [0.0, 0.9], [0.9, 0.9])),
        "weight_decay": st.sampled_from((0.0, 0.1)),
        "amsgrad": _FLAG,
        "maximize": _FLAG,
        "foreach": st.sampled_from((None, True, False)),
        "fused": _FLAG,
        "capturable": _RARE,
        "differentiable": _RARE,
        "tensor_lr": _FLAG,
        "double_lr": _FLAG,
    },
)
_OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "loss": st.sampled_from(("non_saturating", "minimax") * 4 + ("relativistic", "hinge", "least_squares")),
        "real_target": st.sampled_from((0.9, 1.0)),
        "fake_target": st.sampled_from((0.1, 0.0)),
        "d_steps": st.sampled_from((1, 2, 3)),
        "reuse_fake": st.booleans(),
        "num_classes": st.sampled_from((0, 3, 1)),
        "r1_gamma": st.sampled_from((0.0, 0.0, 0.3)),
        "r1_every": st.sampled_from((1, 2, 3)),
        "r2_gamma": st.sampled_from((0.0,) * 5 + (0.3,)),
        "gp_weight": st.sampled_from((0.0,) * 5 + (1.0,)),
        "clip_grad_norm": st.sampled_from((None,) * 5 + (0.1,)),
        "instance_noise": st.sampled_from((0.0,) * 5 + (0.2,)),
        "ema": st.sampled_from((True, True, False)),
        "ema_decay": st.sampled_from((0.9, 0.0, 0.5)),
        "precision": st.sampled_from(("fp32",) * 15 + ("bf16",)),
    },
)
DESCRIPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "generator": st.lists(_TOKENS, max_size=5),
        "generator_end": _ENDS,
        "generator_kind": _KINDS,
        "discriminator": st.lists(_TOKENS, max_size=5),
        "discriminator_end": st.one_of(st.just([]), st.just([]), _ENDS),
        "discriminator_kind": _KINDS,
        "g_optimizer": _OPTIMIZERS,
        "d_optimizer": _OPTIMIZERS,
        "options": _OPTIONS,
        "batch": st.sampled_from((5, 2, 7, 33, 1, 100)),
        "seed": st.integers(0, 99),
    },
)

# Those of many cases, and that which gives the engine something to do again.
_WEIGHTS = {
    "set_attribute": 14,
    "set_number": 6,
    "set_option": 8,
    "set_state_tensor": 2,
    "set_buffer": 2,
    "tensor_hook": 2,
    "module_hook": 2,
    "change_average": 4,
    "step_on_unusual": 3,
    "step_on_wrong": 2,
}

Found = Callable[[dict[str, Any], list[tuple[str, int]], str], None]


def machine(backend: str, without: Sequence[str], trace: TextIO, found: Found, tally: dict[str, int]) -> Any:
    """The class of the machine.

    Args:
        backend: as Example.
        without: names of statements that are left out.
        trace: as Example.
        found: called with each fault: the description, the statements, the message. The example ends there, and passes:
            one run finds many faults.
        tally: counts examples, steps and native steps.
    """
    surgery, process, steps = (
        [name for name in sorted(set(table) - set(without)) for _ in range(_WEIGHTS.get(name, 1))]
        for table in (WORLD, PROCESS, STEPS)
    )
    numbers = st.integers(0, 999)

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.example: Example | None = None
            self.statements: list[tuple[str, int]] = []

        @initialize(description=DESCRIPTIONS)
        def build(self, description: dict[str, Any]) -> None:
            self.description = description
            if any(each.startswith("build=") and each[6:] in json.dumps(description) for each in without):
                return
            try:
                self.example = Example(description, backend, trace, without).__enter__()
            except REFUSALS:
                self.example = None  # torch refuses such optimizers, or the constructor such a step
            else:
                tally["examples"] += 1

        def do(self, name: str, number: int) -> None:
            if self.example is None:
                return
            # hypothesis likes to draw a number again, which here would be the very same thing again
            number = (number + 613 * len(self.statements) + 37 * tally["examples"]) % 1000
            self.statements.append((name, number))
            try:
                self.example.run(name, number)
            except Fault as fault:
                found(self.description, self.statements, str(fault))
                self.end()

        @rule(number=numbers)
        def trains(self, number: int) -> None:
            self.do("step", number)

        @rule(name=st.sampled_from(steps), number=numbers)
        def trains_otherwise(self, name: str, number: int) -> None:
            self.do(name, number)

        @rule(name=st.sampled_from(surgery), number=numbers)
        def operates(self, name: str, number: int) -> None:
            self.on_a_plan(name, number)

        @rule(name=st.sampled_from(surgery), number=numbers)
        def operates_again(self, name: str, number: int) -> None:
            self.on_a_plan(name, number)

        def on_a_plan(self, name: str, number: int) -> None:
            """With a step before and after; where the engine refuses what has become of it, begun afresh first."""
            if self.example is not None and not (self.example.steps and self.example.engine.is_native()):
                if self.example.steps:
                    self.do("undo_process", number)
                    self.do("fresh_start", number)
                self.do("step", number)
            self.do(name, number)
            self.do("read_plan", 0)
            self.do("step", number)

        @rule(name=st.sampled_from(surgery), number=numbers)
        def operates_once_more(self, name: str, number: int) -> None:
            self.on_a_plan(name, number)

        @rule(name=st.sampled_from(surgery), number=numbers)
        def operates_unseen(self, name: str, number: int) -> None:
            self.do(name, number)

        @precondition(lambda self: len(self.statements) > 3)
        @rule(name=st.sampled_from(process), number=numbers)
        def changes_the_process(self, name: str, number: int) -> None:
            self.do(name, number)

        def end(self) -> None:
            if self.example is not None:
                tally["steps"] += self.example.steps
                tally["native"] += self.example.native_steps
                self.example.__exit__(None, None, None)
            self.example = None

        def teardown(self) -> None:
            self.end()

    return Machine


def run(kind: Any, examples: int, number: int | None) -> None:
    """Run the machine; without a number always the same examples."""
    if number is not None:
        kind = seed(number)(kind)
    run_state_machine_as_test(
        kind,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            database=None,
            derandomize=number is None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
