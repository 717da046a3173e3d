"""Recomputes the polynomial coefficients of math.h: python csrc/core/fit_math.py (needs mpmath).

Each is a fit at Chebyshev nodes, weighted for relative error, refined by Lawson's reweighting towards the minimax fit.
"""

from __future__ import annotations

import mpmath as mp
import numpy as np

mp.mp.dps = 40


def fit(name, function, low, high, degree, weight=lambda x: 1.0):
    """Print the coefficients, lowest power first, of the polynomial of that degree nearest to function."""
    nodes = np.cos((np.arange(400) + 0.5) * np.pi / 400) * (high - low) / 2 + (high + low) / 2
    values = np.array([float(function(mp.mpf(x))) for x in nodes])
    scale = np.array([float(weight(mp.mpf(x))) for x in nodes])
    # Chebyshev basis of the unit interval for conditioning; powers of x at the end.
    unit = (2 * nodes - low - high) / (high - low)
    basis = np.polynomial.chebyshev.chebvander(unit, degree) * scale[:, None]
    lawson = np.ones_like(nodes)
    for _ in range(200):
        root = np.sqrt(lawson)
        coefficients, *_ = np.linalg.lstsq(basis * root[:, None], values * scale * root, rcond=None)
        error = np.abs(basis @ coefficients - values * scale)
        lawson *= error + 1e-30
        lawson /= lawson.mean()
    poly = np.polynomial.chebyshev.Chebyshev(coefficients, [low, high]).convert(
        kind=np.polynomial.Polynomial, domain=[-1, 1], window=[-1, 1]
    )
    print(f"{name} on [{low:.6g}, {high:.6g}], largest weighted error {error.max():.2e}")
    print("  " + ", ".join(f"{c:.9e}f" for c in poly.coef))


def log_survival(t):
    """-log(erfc(t)), smooth on the whole positive axis."""
    return -mp.log(mp.erfc(t))


half_ln2 = float(mp.log(2)) / 2
# exp(r) = 1 + r + r^2 P(r)
fit("exp_tail", lambda r: (mp.exp(r) - 1 - r) / r**2 if r else mp.mpf(1) / 2, -half_ln2, half_ln2, 4)
# expm1(r) = r + r^2 P(r) for r in [-0.5, 0]
fit("expm1_tail", lambda r: (mp.expm1(r) - r) / r**2, -0.5, -1e-9, 5)
# log1p(e) = 2 atanh(s) = 2 (s + s^3 P(s^2)), s = e / (2 + e) in [0, 1/3]
fit("atanh_tail", lambda q: (mp.atanh(mp.sqrt(q)) / mp.sqrt(q) - 1) / q, 1e-12, 1 / 9, 5)
# tanh(x) = x + x^3 P(x^2) for |x| <= 0.625
fit("tanh_tail", lambda q: (mp.tanh(mp.sqrt(q)) / mp.sqrt(q) - 1) / q, 1e-12, 0.625**2, 5)
# erf(x) = x P(x^2) for |x| <= 1
fit(
    "erf_near",
    lambda q: mp.erf(mp.sqrt(q)) / mp.sqrt(q),
    1e-12,
    1.0,
    7,
    lambda q: 1 / (mp.erf(mp.sqrt(q)) / mp.sqrt(q)),
)
# erf(t) = 1 - exp(-P(t)) for 1 <= t <= 4; an error of P counts times erfc(t)
fit("erf_far", log_survival, 1.0, 4.0, 8, lambda t: mp.erfc(t) * 1.0 + mp.mpf("1e-9"))
