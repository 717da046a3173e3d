"""What the integration of ctgan computes by hand, against autograd on networks of the same form, in float64."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conformance import assert_close_in_float64
from torch import Tensor, nn

from fastgan.integrations.ctgan_networks import CriticInput, ResidualGenerator, kept_by_dropout
from fastgan.integrations.ctgan_training import Conditions, Critic, segments_of

BATCH = 24


class Residual(nn.Module):
    """As ctgan has it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.fc, self.bn = nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.relu(self.bn(self.fc(x))), x], dim=1)


def generator(widths: tuple[int, ...], inputs: int = 7, outputs: int = 9) -> nn.Module:
    layers: list[nn.Module] = []
    for width in widths:
        layers.append(Residual(inputs, width))
        inputs += width
    module = nn.Module()
    module.seq = nn.Sequential(*layers, nn.Linear(inputs, outputs))
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double()


def critic(widths: tuple[int, ...], inputs: int, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.LeakyReLU(0.2), nn.Dropout(dropout)]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, 1)).double()


@pytest.mark.parametrize("widths", [(), (6,), (6, 4), (3, 8, 5)])
def test_the_generator_is_that_of_autograd(widths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ours, plain = generator(widths), generator(widths)
    plain.load_state_dict(ours.state_dict())
    by_hand = ResidualGenerator(ours, 7)
    for batch in (BATCH, BATCH // 2):  # another size makes other buffers
        noise, gradient = torch.randn(batch, 7).double(), torch.randn(batch, 9).double()
        output, expected = by_hand.forward(noise), plain.seq(noise)
        by_hand.backward(gradient)
        plain.zero_grad()
        expected.backward(gradient)
        assert_close_in_float64(output, expected)
        for parameter, twin in zip(ours.parameters(), plain.parameters(), strict=True):
            assert_close_in_float64(parameter.grad, twin.grad)
    for buffer, twin in zip(ours.buffers(), plain.buffers(), strict=True):
        assert_close_in_float64(buffer, twin)


@pytest.mark.parametrize("widths", [(), (6, 4)])
def test_batches_of_one_pass_are_those_of_passes_one_after_the_other(widths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ours, plain = generator(widths), generator(widths)
    plain.load_state_dict(ours.state_dict())
    by_hand, level = ResidualGenerator(ours, 3), torch.randint(4, (3 * BATCH,))
    noise, gradient = torch.randn(3 * BATCH, 3).double(), torch.randn(BATCH, 9).double()
    one_hot = nn.functional.one_hot(level, 4).double()
    for _ in range(2):  # the second time into the gradients of the first
        expected = [plain.seq(batch) for batch in torch.cat([noise, one_hot], 1).split(BATCH)]
        assert_close_in_float64(by_hand.forward(noise, level, 3), torch.cat(expected))
        by_hand.backward(gradient)
        plain.zero_grad()
        expected[-1].backward(gradient)
        for parameter, twin in zip(ours.parameters(), plain.parameters(), strict=True):
            assert_close_in_float64(parameter.grad, twin.grad)
        for buffer, twin in zip(ours.buffers(), plain.buffers(), strict=True):
            assert_close_in_float64(buffer, twin)


@pytest.mark.parametrize("widths", [(), (6, 4)])
def test_a_level_takes_a_column_of_each_weight(widths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ours = generator(widths)
    noise, level = torch.randn(BATCH, 7).double(), torch.arange(4).repeat(6)
    noise[:, 3:] = nn.functional.one_hot(level, 4)
    expected = ours.seq(noise)
    by_hand, gradient = ResidualGenerator(ours, 3), torch.randn(BATCH, 9).double()
    assert_close_in_float64(by_hand.forward(noise[:, :3], level), expected)
    expected.backward(gradient)
    expected_gradients = [parameter.grad for parameter in ours.parameters()]
    by_hand.backward(gradient)
    for parameter, twin in zip(ours.parameters(), expected_gradients, strict=True):
        assert_close_in_float64(parameter.grad, twin)


class DropoutOfTheSameMasks(nn.Module):
    """Dropout by the masks that CriticInput draws."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x * kept_by_dropout(x, self.p) / (1 - self.p if self.p < 1 else 1)


def of_the_same_masks(layer: nn.Module) -> nn.Module:
    return DropoutOfTheSameMasks(layer.p if layer.training else 0.0) if isinstance(layer, nn.Dropout) else layer


@pytest.mark.parametrize("widths", [(), (6,), (6, 4)])
@pytest.mark.parametrize("pac", [1, 4])
@pytest.mark.parametrize("dropout", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("training", [True, False])
def test_the_score_and_its_gradient_are_those_of_autograd(
    widths: tuple[int, ...], pac: int, dropout: float, training: bool
) -> None:
    torch.manual_seed(0)
    layers = critic(widths, 5 * pac, dropout).train(training)
    batch = torch.randn(BATCH, 5).double().requires_grad_()
    torch.manual_seed(1)
    score, gradient = CriticInput(layers, pac).score_and_gradient(batch.detach())
    torch.manual_seed(1)  # the masks are drawn in the same order
    expected = nn.Sequential(*map(of_the_same_masks, layers))(batch.view(-1, 5 * pac)).mean()
    (expected_gradient,) = torch.autograd.grad(expected, batch)
    assert_close_in_float64(score, expected.detach())
    assert_close_in_float64(gradient, expected_gradient)


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
def test_masks_keep_their_share_of_every_column(p: float) -> None:
    torch.manual_seed(0)
    like = torch.empty(4001, 13, dtype=torch.float64)
    kept = kept_by_dropout(like, p)
    assert kept.shape == like.shape
    assert kept.dtype == torch.bool
    deviation = (p * (1 - p) / len(like)) ** 0.5
    assert ((kept.double().mean(0) - (1 - p)).abs() <= 5 * deviation).all()
    # Neighbours agree as often as those that are drawn by themselves.
    for a, b in ((kept[:, :-1], kept[:, 1:]), (kept[:-1], kept[1:])):
        share = p * p + (1 - p) ** 2
        assert abs(float((a == b).double().mean()) - share) <= 5 * (share * (1 - share) / a.numel()) ** 0.5
    assert not torch.equal(kept_by_dropout(like, p), kept) or p in (0.0, 1.0)


def conditions(rows: int = 400) -> tuple[Conditions, np.ndarray, list[int]]:
    """Two discrete columns, of 3 and 2 levels, behind two columns that are not."""
    rng = np.random.default_rng(0)
    levels = np.stack([rng.choice(3, rows, p=[0.7, 0.2, 0.1]), rng.choice(2, rows, p=[0.9, 0.1])], axis=1)
    counts = [np.bincount(levels[:, column]) for column in (0, 1)]
    probabilities = np.zeros((2, 3))
    for column, count in enumerate(counts):
        probabilities[column, : len(count)] = np.log(count + 1) / np.log(count + 1).sum()
    sampler = SimpleNamespace(
        _discrete_column_n_category=np.array([3, 2], dtype="int32"),
        _discrete_column_category_prob=probabilities,
        _rid_by_cat_cols=[
            [np.nonzero(levels[:, column] == level)[0] for level in range(width)] for column, width in enumerate((3, 2))
        ],
    )
    return Conditions(sampler, [2, 5], 9, torch.device("cpu")), levels, [3, 2]


def test_a_condition_is_a_column_each_as_likely_and_a_level_by_its_probability() -> None:
    torch.manual_seed(0)
    drawn, levels, _ = conditions()
    draws = 20_000
    shares = np.bincount(drawn.draw(draws).numpy(), minlength=5) / draws
    for column, first, width in ((0, 0, 3), (1, 3, 2)):
        weights = np.log(np.bincount(levels[:, column]) + 1)
        expected = weights / weights.sum() / 2
        # Five standard deviations of a binomial share.
        assert np.all(abs(shares[first : first + width] - expected) < 5 * np.sqrt(expected / draws))


def test_rows_have_the_level_and_each_is_as_likely() -> None:
    torch.manual_seed(0)
    drawn, levels, _ = conditions()
    level = torch.arange(5).repeat(4000)
    rows = drawn.rows_with(level).numpy()
    columns, within = np.array([0, 0, 0, 1, 1])[level], np.array([0, 1, 2, 0, 1])[level]
    assert (levels[rows, columns] == within).all()
    for one in range(5):
        counts = np.bincount(rows[level.numpy() == one], minlength=len(levels))
        of_level = levels[:, (0, 0, 0, 1, 1)[one]] == (0, 1, 2, 0, 1)[one]
        expected = 4000 / of_level.sum()
        assert abs(counts[of_level] - expected).max() < 6 * np.sqrt(expected)


def test_the_cross_entropy_is_of_the_column_that_was_asked_for() -> None:
    torch.manual_seed(0)
    drawn, _, widths = conditions()
    output = torch.randn(BATCH, 9).double().requires_grad_()  # two columns more at the end
    level = torch.arange(5).repeat(5)[:BATCH]
    result, gradient = drawn.cross_entropy(output.detach(), level)
    expected = torch.zeros((), dtype=torch.float64)
    for row, one in enumerate(level.tolist()):
        first, width, within = (2, widths[0], one) if one < 3 else (5, widths[1], one - 3)
        expected = expected - output[row, first : first + width].log_softmax(0)[within]
    assert_close_in_float64(result, expected / BATCH)
    (expected_gradient,) = torch.autograd.grad(expected / BATCH, output)
    assert_close_in_float64(gradient, expected_gradient)


def test_the_cross_entropy_of_logits_far_apart_is_finite() -> None:
    drawn, _, _ = conditions()
    output = torch.zeros(2, 9).double()
    output[0, 2], output[1, 5] = 1e4, -1e4  # of the levels 0 and 3
    result, gradient = drawn.cross_entropy(output, torch.tensor([1, 3]))
    assert_close_in_float64(result, torch.tensor(1e4).double())
    expected = torch.zeros(2, 9).double()
    expected[0, 2], expected[0, 3], expected[1, 5], expected[1, 6] = 0.5, -0.5, -0.5, 0.5
    assert_close_in_float64(gradient, expected)


def test_segments_are_read_from_the_transformer() -> None:
    def span(dim: int, kind: str) -> SimpleNamespace:
        return SimpleNamespace(dim=dim, activation_fn=kind)

    transformer = SimpleNamespace(output_info_list=[[span(1, "tanh"), span(3, "softmax")], [span(2, "softmax")]])
    assert segments_of(transformer) == ([1, 3, 2], ["tanh", "gumbel_softmax", "gumbel_softmax"])
    transformer.output_info_list.append([span(1, "sigmoid")])
    assert segments_of(transformer) is None


@pytest.mark.parametrize("dropped", [0.5, 0.2])
def test_the_critics_masks_keep_their_share_and_repeat_with_the_seed(dropped: float) -> None:
    width, batch = 256, 200
    layers = nn.Sequential(nn.Linear(1, width), nn.Dropout(dropped), nn.Linear(width, 1))
    for parameter, value in zip(layers.parameters(), (0.0, 1.0, 1 / width, 0.0), strict=True):
        nn.init.constant_(parameter, value)
    step = Critic(layers, torch.optim.Adam(layers.parameters(), lr=0.0), loss="wasserstein")
    assert step.plan.startswith("the whole update of D as one native call")
    scores = []
    for _ in range(2):
        torch.manual_seed(0)
        statistics = step.step(torch.zeros(batch, 1), torch.zeros(batch, 1))
        scores.append((float(statistics.real_score), float(statistics.fake_score)))
    assert scores[0] == scores[1]
    assert scores[0][0] != scores[0][1]
    # Each score is the mean of so many masks over the share that is kept, which has the mean 1.
    deviation = (dropped / (1 - dropped) / (width * batch)) ** 0.5
    assert all(abs(score - 1) < 5 * deviation for score in scores[0])
