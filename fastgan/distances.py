"""Which points lie within the k-th-neighbour balls of others: as differences in float64 say, at a product's speed.

A matrix product gives all distances some twenty times faster than differences do, but far from the origin, or of points
close to each other, it leaves rounding errors alone. So it sorts the pairs only: those that its error bound leaves in
doubt are computed again, from differences. What is decided is what differences would have decided.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Entries of a matrix of distances, and values of pairs of points, at a time: 128 and 32 MB in float64.
ENTRIES = 2**24
VALUES = 2**22
# Neighbours beyond the k-th that are computed from differences, so that near ties are among them.
_SPARE = 8


class Part(NamedTuple):
    """Some rows of the matrix of squared distances.

    Attributes:
        first: index of the first of the rows.
        squares: (rows, M) squared distances, with rounding errors.
        errors: (rows, M) the most that they may be off from those of differences.
    """

    first: int
    squares: Tensor
    errors: Tensor


def squared_radii(points: Tensor, k: int) -> Tensor:
    """(N,) the squared distance of each of the points (N, data), float64, to its k-th neighbour among the others."""
    candidates = min(k + 1 + _SPARE, len(points))
    radii = []
    for part in _parts(points, points):
        nearest = part.squares.topk(candidates, dim=1, largest=False)
        rows = torch.arange(len(part.squares), device=points.device) + part.first
        pairs = rows.repeat_interleave(candidates), nearest.indices.flatten()
        # Each point is its own nearest neighbour, hence k + 1.
        radius = _squares(points, points, *pairs).view(-1, candidates).kthvalue(k + 1, dim=1).values
        if candidates < len(points):
            certain = radius < nearest.values[:, -1] - part.errors.amax(dim=1)
            for row in rows[~certain].tolist():
                everybody = torch.arange(len(points), device=points.device)
                squares = _squares(points, points, torch.full_like(everybody, row), everybody)
                radius[row - part.first] = squares.kthvalue(k + 1).values
        radii.append(radius)
    return torch.cat(radii)


def are_inside(points: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """(N,) whether each of the points (N, data) lies in the ball of any of the centres (M, data), all float64.

    Args:
        points: where to look.
        centres: of the balls.
        radii: (M,) of `squared_radii`; the surface belongs to a ball.
    """
    found = []
    for part in _parts(points, centres):
        inside = (part.squares + part.errors <= radii).any(dim=1)
        doubtful = (part.squares - part.errors <= radii) & ~inside[:, None]
        rows, columns = doubtful.nonzero(as_tuple=True)
        hits = _squares(points, centres, rows + part.first, columns) <= radii[columns]
        inside[rows[hits]] = True
        found.append(inside)
    return torch.cat(found)


def count_inside(points: Tensor, centres: Tensor, radii: Tensor) -> tuple[Tensor, Tensor]:
    """How many balls each point lies in, and which balls hold a point; the surface belongs to no ball.

    Args:
        points: (N, data), float64.
        centres: (M, data), float64, of the balls.
        radii: (M,) of `squared_radii`.

    Returns:
        (N,) int64 counts, and (M,) whether any point is inside.
    """
    counts, holds = [], torch.zeros(len(centres), dtype=torch.bool, device=centres.device)
    for part in _parts(points, centres):
        inside = part.squares + part.errors < radii
        doubtful = (part.squares - part.errors < radii) & ~inside
        rows, columns = doubtful.nonzero(as_tuple=True)
        inside[rows, columns] = _squares(points, centres, rows + part.first, columns) < radii[columns]
        counts.append(inside.sum(dim=1))
        holds |= inside.any(dim=0)
    return torch.cat(counts), holds


def _parts(points: Tensor, centres: Tensor) -> Iterator[Part]:
    """|x|^2 + |c|^2 - 2 x c, of points moved to where the centres are."""
    finite = centres[centres.isfinite().all(dim=1)]
    shift = finite.mean(dim=0) if len(finite) else torch.zeros_like(centres[0])
    moved = centres - shift
    norms = moved.norm(dim=1)
    # A sum of d products is off by d 2^-53 of the sum of their sizes at most; doubled for each of the two ways.
    unit = (centres.shape[1] + 8) * 2.0**-51
    rows = max(1, ENTRIES // len(centres))
    for first in range(0, len(points), rows):
        part = points[first : first + rows] - shift
        sizes = part.norm(dim=1)[:, None]
        squares = torch.addmm(norms.square() + sizes.square(), part, moved.T, alpha=-2)
        yield Part(first, squares, (norms + sizes).square_().mul_(unit))


def _squares(points: Tensor, centres: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The squared distances of pairs, from differences."""
    step = max(1, VALUES // points.shape[1])
    pairs = zip(rows.split(step), columns.split(step), strict=True)
    return torch.cat([(points[i] - centres[j]).square_().sum(dim=1) for i, j in pairs])
