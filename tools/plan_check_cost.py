"""What a plan's check costs: the share of a step that goes into asking whether the plan is still right.

    python -m tools.plan_check_cost --calls 2000

Each call times one step and, right after it, the check alone, so that both meet the same machine and the check finds
its objects where a step leaves them: mostly out of the caches.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from bench.configurations import CONFIGURATIONS, by_name
from bench.step import inputs
from bench.training import new_train_step


def cost(name: str, calls: int) -> dict[str, Any]:
    """Median seconds of a step and of its check, and the check's share."""
    configuration = by_name(name)
    step = new_train_step(configuration)
    reals, noises = inputs(configuration)
    noise = noises[0][None]
    for _ in range(20):
        step.step(reals[0], noise=noise)
    plan = step._plan
    if plan is None:
        return {"plan": step.plan}
    steps, checks = [], []
    for i in range(calls):
        real = reals[i % len(reals)]
        begin = time.perf_counter()
        step.step(real, noise=noise)
        middle = time.perf_counter()
        assert plan.is_current()
        end = time.perf_counter()
        steps.append(middle - begin)
        checks.append(end - middle)
    whole, check = statistics.median(steps), statistics.median(checks)
    return {"plan": step.plan, "step": whole, "check": check, "share": check / whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000, help="steps of each configuration")
    parser.add_argument("--only", default="ring", help=f"of {', '.join(c.name for c in CONFIGURATIONS)}, with commas")
    arguments = parser.parse_args()
    for name in arguments.only.split(","):
        facts = cost(name, arguments.calls)
        print(f"{name}: {facts['plan']}")
        if "share" in facts:
            print(f"  step {facts['step'] * 1e6:.1f} us, check {facts['check'] * 1e6:.2f} us, {facts['share']:.2%}")


if __name__ == "__main__":
    main()
