"""A record of the benchmark with figures made up: two configurations, both sweeps, memory and phases."""

from __future__ import annotations

from typing import Any


def row(case: str, contender: str, times: float, **more: Any) -> dict[str, Any]:
    return {
        "case": case,
        "contender": contender,
        "median_us": 1000.0 / times,
        "rounds": 9,
        "times_as_fast": times,
        "verdict": "" if contender == "torch" else ("faster" if times >= 1 else "slower"),
        **more,
    }


def made_up_record() -> dict[str, Any]:
    rows = []
    for name, intensity in (("ring", 100.0), ("mnist", 20.0)):
        facts = {"configuration": name, "batch": 128, "width": 256, "flops_per_byte": intensity}
        against = {"torch": 3.0, "torch one batch": 2.75, "torch foreach": 4.0, "jax": 0.9, "torch.compile": 1.5}
        rows.append(
            row(f"step {name} float32", "fastgan", 3.0, **facts, against=against, of_ceiling=0.61, **{"GFLOP/s": 90.0})
        )
        rows.append(
            row(
                f"step {name} float32",
                "torch",
                1.0,
                **facts,
                against={"fastgan": 0.33},
                of_ceiling=0.2,
                **{"GFLOP/s": 30.0},
            )
        )
    rows.append(row("step mnist float32", "fastgan bf16", 6.0, against={"fastgan": 1.8, "torch": 6.0}, of_ceiling=0.1))
    for axis in ("batch", "width"):
        for value, ratio in ((32, 0.97), (64, 1.4)):
            case = f"step {axis} {value} float32"
            rows.append(row(case, "fastgan", ratio, sweep=axis, against={"torch": ratio}, **{axis: value}))
            rows.append(row(case, "torch", 1.0, sweep=axis, against={"fastgan": 1 / ratio}, **{axis: value}))
    rows.append(row("host discriminator_loss 64x1 float32 forward+backward", "fastgan", 2.25))
    rows.append(row("host discriminator_loss 64x1 float32 forward+backward", "torch", 1.0))
    return {
        "environment": {
            "date": "2026-11-23",
            "commit": "abc123",
            "cpu": "a CPU",
            "threads": 2,
            "torch": "2.13.0",
            "build": {"cpu_instructions": "avx512"},
        },
        "ceilings": {"GB/s": 20.0, "GFLOP/s float32": 150.0, "GFLOP/s bfloat16": 1200.0},
        "rows": rows,
        "profiles": {
            "ring": {"plan": "fused", "seconds": {"generate": 1e-4, "update": 3e-4}},
            "wide": {"plan": "composed", "reason": "R1"},
        },
        "memory": [
            {
                "case": "memory ring",
                "contender": "fastgan",
                "configuration": "ring",
                "peak_mib": 300.0,
                "of_torch": 0.97,
            }
        ],
    }
