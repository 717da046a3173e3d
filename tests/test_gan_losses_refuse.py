"""What discriminator_loss and generator_loss of every kind refuse, in the same sentences on every backend."""

from __future__ import annotations

import math

import pytest
import torch
from conformance import here

from fastgan.functional import discriminator_loss, generator_loss

ONES = torch.ones(2)
PAIR = (ONES, ONES)
BAD = [
    (
        discriminator_loss,
        PAIR,
        {"kind": "minimax"},
        ValueError,
        "^kind must be one of bce, relativistic, hinge, wass.*, not 'minimax'",
    ),
    (discriminator_loss, PAIR, {"kind": None}, ValueError, "^kind must be one of bce, .*, not None"),
    (
        discriminator_loss,
        PAIR,
        {"kind": "hinge", "real_target": 0.9},
        ValueError,
        "^real_target must be 1.0, its default, for kind 'hinge', which takes no targets, not 0.9",
    ),
    (
        discriminator_loss,
        PAIR,
        {"kind": "relativistic", "fake_target": 0.1},
        ValueError,
        "^fake_target must be 0.0, its default, for kind 'relativistic'",
    ),
    (
        discriminator_loss,
        PAIR,
        {"kind": "wasserstein", "fake_target": "0"},
        TypeError,
        "^fake_target must be a number, not str '0'",
    ),
    (
        discriminator_loss,
        PAIR,
        {"kind": "wasserstein", "fake_target": math.nan},
        ValueError,
        "^fake_target must be finite, not nan",
    ),
    (
        discriminator_loss,
        PAIR,
        {"kind": "least_squares", "real_target": math.inf},
        ValueError,
        "^real_target must be finite, not inf",
    ),
    (
        discriminator_loss,
        PAIR,
        {"kind": "least_squares", "real_target": True},
        TypeError,
        "^real_target must be a number, not bool True",
    ),
    (
        discriminator_loss,
        PAIR,
        {"kind": "bce", "real_target": 1.5},
        ValueError,
        r"^real_target must be in \[0, 1\], not 1.5",
    ),
    (
        discriminator_loss,
        PAIR,
        {"kind": "hinge", "reduction": "max"},
        ValueError,
        "^reduction must be one of none, mean, sum, not 'max'",
    ),
    (
        discriminator_loss,
        (ONES, torch.ones(3)),
        {"kind": "relativistic"},
        ValueError,
        r"^fake_logits of shape \(3,\) must have the shape \(2,\) of real_logits for kind 'relativistic'",
    ),
    (
        discriminator_loss,
        (ONES, torch.ones(2, 1)),
        {"kind": "relativistic", "reduction": "none"},
        ValueError,
        r"^fake_logits of shape \(2, 1\)",
    ),
    (discriminator_loss, (ONES, ONES.double()), {"kind": "relativistic"}, RuntimeError, "float64.*float32"),
    (discriminator_loss, (ONES, None), {"kind": "hinge"}, TypeError, "^fake_logits must be a Tensor, not NoneType"),
    (
        generator_loss,
        (ONES,),
        {"kind": "bce"},
        ValueError,
        "^kind must be one of non_saturating, minimax, relativistic, hinge, wass.*, not 'bce'",
    ),
    (
        generator_loss,
        (ONES,),
        {"kind": "relativistic"},
        ValueError,
        "^real_logits must be given for kind 'relativistic', which pairs them with fake_logits, not None",
    ),
    (
        generator_loss,
        PAIR,
        {"kind": "hinge"},
        ValueError,
        "^real_logits must be left out for kind 'hinge', whose loss is of the fakes alone",
    ),
    (generator_loss, PAIR, {}, ValueError, "^real_logits must be left out for kind 'non_saturating'"),
    (
        generator_loss,
        (ONES, torch.ones(3)),
        {"kind": "relativistic"},
        ValueError,
        r"^real_logits of shape \(3,\) must have the shape \(2,\) of fake_logits",
    ),
    (generator_loss, (ONES, ONES.int()), {"kind": "relativistic"}, RuntimeError, "^real_logits must.*int32"),
    (generator_loss, (ONES, ONES.double()), {"kind": "relativistic"}, RuntimeError, "float64.*float32"),
    (
        generator_loss,
        (ONES, torch.ones(2, device="meta")),
        {"kind": "relativistic"},
        RuntimeError,
        "^real_logits must be on the same device.*meta",
    ),
    (
        generator_loss,
        PAIR,
        {"kind": "relativistic", "target": 0.9},
        ValueError,
        "^target must be 1.0, its default, for kind 'relativistic'",
    ),
    (
        generator_loss,
        (ONES,),
        {"kind": "wasserstein", "target": 0.0},
        ValueError,
        "^target must be 1.0, its default, for kind 'wasserstein'",
    ),
    (
        generator_loss,
        (ONES,),
        {"kind": "minimax", "target": -0.1},
        ValueError,
        r"^target must be in \[0, 1\], not -0.1",
    ),
    (
        generator_loss,
        (ONES,),
        {"kind": "least_squares", "target": None},
        TypeError,
        "^target must be a number, not NoneType",
    ),
]


@pytest.mark.parametrize(("function", "arguments", "keywords", "error", "message"), BAD)
def test_bad_input(backend: str, function, arguments, keywords, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        function(*here(arguments), **keywords)
