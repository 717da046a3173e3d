"""A table such as people have: reals, one of them mostly zero, whole numbers, dates, words, missing values."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def mixed_table(rows: int, seed: int = 0) -> dict[str, list[str]]:
    """Columns of cells by name: 4 continuous ones, of which `gain` is 0 in 90 % of the rows, and 8 discrete ones of 2
    to 40 levels, with missing values in two columns.

    Args:
        rows: how many.
        seed: of all of it.
    """
    rng = np.random.default_rng(seed)
    job = rng.choice(4, rows, p=[0.5, 0.25, 0.15, 0.1])
    education = np.minimum(rng.poisson(2 + job), 6)
    age = np.clip(rng.gamma(9, 4, rows) + 3 * education, 17, 90)
    pay = np.array([20.0, 35.0, 50.0, 90.0])[job] + 2 * education + rng.normal(size=rows) * (2 + job)
    gain = np.where(rng.random(rows) < 0.9, 0.0, rng.exponential(1000.0, rows) * (1 + job))
    score = 0.4 * (pay - pay.mean()) / pay.std() + rng.standard_normal(rows)

    def levels(values: np.ndarray, prefix: str) -> list[str]:
        return [f"{prefix}{value}" for value in values]

    town = np.minimum(rng.geometric(0.12, rows) - 1, 39)
    blank_score, blank_plan = rng.random(rows) < 0.08, rng.random(rows) < 0.05
    plan = levels(rng.integers(0, 5, rows), "plan ")
    return {
        "age": [f"{value:.0f}" for value in age],
        "pay": [f"{value:.2f}" for value in pay],
        "gain": [f"{value:.1f}" for value in gain],
        "score": ["" if blank else f"{value:.4f}" for value, blank in zip(score, blank_score, strict=True)],
        "job": [("clerk", "smith", "nurse", "teacher, head")[i] for i in job],
        "education": levels(education, "grade "),
        "town": levels(town, "town "),
        "region": levels(town // 8, "region "),
        "plan": ["" if blank else value for value, blank in zip(plan, blank_plan, strict=True)],
        "member": ["yes" if value else "no" for value in rng.random(rows) < 0.2 + 0.15 * job],
        "sex": ["F" if value else "M" for value in rng.random(rows) < 0.5],
        "month": [str(value) for value in rng.integers(1, 13, rows)],
    }


def write_csv(path: Path, columns: dict[str, list[str]] | dict[str, Sequence[str]], separator: str = ",") -> Path:
    """Write columns as a .csv file, and return its path."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=separator, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path
