"""Training on tables: batches by level, the condition's cross-entropy, runs, and synthetic tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from extent import rest
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import fastgan
from bench.mixed_table import mixed_table, write_csv
from fastgan import condition
from fastgan.cli import app
from fastgan.data import DataError, load
from fastgan.nn import MLP, SegmentedActivation
from fastgan.training import pictures
from fastgan.training.batches import LevelBatches
from fastgan.training.config import TrainConfig

SMALL = {"g_hidden": (16,), "d_hidden": (16,), "latent_size": 8, "pac": 10}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("data") / "people.csv", mixed_table(600))


@pytest.fixture(scope="module")
def trained(table: Path) -> Path:
    """The folder of a run of a few steps."""
    trainer = fastgan.Trainer(table, steps=6, batch_size=100, log_every=3, runs=str(table.parent / "runs"), **SMALL)
    return trainer.train(quiet=True)


def run(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == code, result.output
    return result.output


# Batches.


def test_a_batch_has_the_level_that_its_label_asks_for(table: Path) -> None:
    data = load(table)
    batches = LevelBatches(data, 50, 1, torch.device("cpu"), seed=0)
    columns = torch.tensor(data.table.level_columns)
    for _ in range(100):
        real, labels = batches.next()
        assert (real[torch.arange(50), columns[labels]] == 1).all()
    real, labels = LevelBatches(data, 50, 3, torch.device("cpu"), seed=0).next()
    assert real.shape == (3, 50, data.width)
    assert labels.shape == (3, 50)
    assert (real.flatten(0, 1)[torch.arange(150), columns[labels.flatten()]] == 1).all()


def test_levels_are_drawn_by_the_logarithm_of_their_rows(tmp_path: Path) -> None:
    """Columns alike, and of each level log(1 + rows) over the sum of them; rows of a level alike."""
    text = "a,b,c\n" + "".join(f"{'x' if i < 990 else 'y'},{i % 4},{i}.5\n" for i in range(1000))
    (tmp_path / "x.csv").write_text(text)
    data = load(tmp_path / "x.csv")
    batches = LevelBatches(data, 20_000, 1, torch.device("cpu"), seed=0)
    real, labels = batches.next()
    logs = torch.tensor([990.0, 10.0, 250.0, 250.0, 250.0, 250.0], dtype=torch.float64).log1p()
    shares = torch.cat([logs[:2] / logs[:2].sum(), logs[2:] / logs[2:].sum()]) / 2
    found = labels.bincount(minlength=6).double() / 20_000
    # Five standard deviations of a share of 20,000 draws.
    assert ((found - shares).abs() < 5 * (shares * (1 - shares) / 20_000).sqrt()).all()
    rows = real[labels == 1, :].unique(dim=0)
    assert len(rows) == 10


def test_batches_go_on_where_they_were(table: Path) -> None:
    data = load(table)
    first, second = (LevelBatches(data, 20, 1, torch.device("cpu"), seed=seed) for seed in (0, 1))
    for _ in range(70):
        first.next()
    second.load_state(*first.state())
    for _ in range(70):
        assert all(torch.equal(a, b) for a, b in zip(first.next(), second.next(), strict=True))


# The condition's cross-entropy.


def generator(widths: tuple[int, ...] = (1, 3, 4, 2), latent: int = 5, classes: int = 6) -> nn.Sequential:
    kinds = ("tanh", "softmax", "gumbel_softmax", "gumbel_softmax")
    made = MLP([latent + classes, 16, sum(widths)], activation="relu")
    return made.append(SegmentedActivation(widths, kinds))


def optimizers(*networks: nn.Module) -> list[torch.optim.Adam]:
    return [torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.5, 0.9)) for network in networks]


def loop_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sample by sample: the segment of the label alone."""
    spans = [(4, 8, label) if label < 4 else (8, 10, label - 4) for label in labels.tolist()]
    of_each = [
        F.cross_entropy(row[None, start:end], torch.tensor([at], device=row.device))
        for row, (start, end, at) in zip(logits, spans, strict=True)
    ]
    return torch.stack(of_each).mean()


def test_cross_entropy_is_that_of_the_segment_asked_for() -> None:
    labels = torch.randint(0, 6, (40,))
    logits = torch.randn(40, 10, dtype=torch.float64, requires_grad=True)
    found = condition.cross_entropy(generator(), logits, F.one_hot(labels, 6))
    wanted = loop_cross_entropy(logits, labels)
    assert abs(found.item() - wanted.item()) < 1e-14
    (first,), (second,) = torch.autograd.grad(found, logits), torch.autograd.grad(wanted, logits)
    assert (first - second).abs().max().item() < 1e-15
    assert torch.autograd.gradcheck(
        lambda x: condition.cross_entropy(generator(), x, F.one_hot(labels, 6)), (logits,), fast_mode=True
    )


def test_the_last_segments_may_be_all_that_are_asked_for() -> None:
    logits, labels = torch.randn(30, 10, dtype=torch.float64), torch.randint(0, 2, (30,))
    found = condition.cross_entropy(generator(), logits, F.one_hot(labels, 2))
    assert abs(found.item() - F.cross_entropy(logits[:, 8:], labels).item()) < 1e-14
    assert condition.asked_segments((2, 3, 2), ("gumbel_softmax", "gumbel_softmax", "tanh"), 3) == (1,)
    assert condition.asked_segments((2, 3, 2), ("gumbel_softmax", "gumbel_softmax", "tanh"), 5) == (0, 1)
    for classes in (0, 2, 4, 6):
        assert condition.asked_segments((2, 3, 2), ("gumbel_softmax", "gumbel_softmax", "tanh"), classes) is None


@pytest.mark.parametrize("reuse_fake", [True, False])
def test_a_step_with_the_cross_entropy_is_the_plain_loop(backend: str, reuse_fake: bool) -> None:
    """One step of WGAN-GP with packs, of plain modules, beside the step; in float64."""
    torch.manual_seed(3)
    made = [generator().double(), MLP([2 * 16, 16, 1]).double()]
    plain = [nn.Sequential(*made[0]), nn.Sequential(*made[1])]
    twins = [generator().double(), MLP([2 * 16, 16, 1]).double()]
    for twin, network in zip(twins, plain, strict=True):
        twin.load_state_dict(network.state_dict())
    options = {"loss": "wasserstein", "gp_weight": 10.0, "pac": 2, "num_classes": 6, "reuse_fake": reuse_fake}
    step = fastgan.TrainStep(*twins, *optimizers(*twins), condition_weight=0.7, **options)
    assert step.plan.startswith("composed" if backend == "reference" else "the whole step as one native call")
    real, labels = torch.randn(8, 10, dtype=torch.float64), torch.randint(0, 6, (8,))
    noise = torch.randn(1 if reuse_fake else 2, 8, 5, dtype=torch.float64)
    torch.manual_seed(5)
    stats = step.step(real, labels, noise)

    torch.manual_seed(5)
    (g, d), (of_g, of_d) = plain, optimizers(*plain)
    asked = F.one_hot(labels, 6).double()

    def packed(samples: torch.Tensor) -> torch.Tensor:
        return torch.cat([samples, asked], dim=1).reshape(4, -1)

    def drawn(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = g[:-1](torch.cat([z, asked], dim=1))
        return g[-1](logits), logits

    fake, logits = drawn(noise[0])
    d_loss = d(packed(fake.detach())).mean() - d(packed(real)).mean()
    u = torch.rand(4, 1, dtype=torch.float64).expand(-1, 2).reshape(-1, 1)
    points = packed(u * real + (1 - u) * fake.detach()).requires_grad_()
    (slope,) = torch.autograd.grad(d(points).sum(), points, create_graph=True)
    norms = slope.unflatten(1, (2, 16))[..., :10].flatten(1).norm(dim=1)
    of_d.zero_grad()
    (d_loss + 10 * (norms - 1).square().mean()).backward()
    of_d.step()
    if not reuse_fake:
        fake, logits = drawn(noise[1])
    g_loss = -d(packed(fake)).mean()
    of_g.zero_grad()
    (g_loss + 0.7 * loop_cross_entropy(logits, labels)).backward()
    of_g.step()
    assert abs(stats.g_loss.item() - g_loss.item()) < 1e-12  # without the cross-entropy
    for twin, network in zip(twins, plain, strict=True):
        for a, b in zip(twin.parameters(), network.parameters(), strict=True):
            assert (a - b).abs().max().item() < 1e-9


def test_the_cross_entropy_teaches_the_generator_the_level() -> None:
    """With it the samples have the level that they were asked for, and without it they need not."""
    found = []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        networks = generator(), MLP([16, 16, 1])
        adam = [torch.optim.Adam(network.parameters(), lr=5e-3, betas=(0.5, 0.9)) for network in networks]
        step = fastgan.TrainStep(*networks, *adam, loss="wasserstein", num_classes=6, condition_weight=weight)
        rows = torch.randn(64, 10) * 0.01
        for _ in range(150):
            step.step(rows, torch.randint(0, 6, (64,)))
        labels = torch.arange(6).repeat(50)
        drawn = networks[0](torch.cat([torch.randn(300, 5), F.one_hot(labels, 6)], dim=1))
        at = torch.where(labels < 4, drawn[:, 4:8].argmax(1), 4 + drawn[:, 8:].argmax(1))
        found.append((at == labels).double().mean().item())
    assert found[1] > 0.9
    assert found[0] < 0.7


@pytest.mark.parametrize(
    ("made", "options", "sentence"),
    [
        (MLP([11, 16, 10]), {"num_classes": 6}, "no nn.Sequential ending in fastgan.nn.SegmentedActivation"),
        (
            nn.Sequential(nn.Linear(11, 3), SegmentedActivation((1, 2), ("tanh", "softmax"))),
            {"num_classes": 6},
            "without gumbel_softmax segments",
        ),
        (generator(), {"num_classes": 5}, "num_classes must be 6, the columns of .*, not 5"),
        (generator(), {}, "num_classes must be 6, the columns of .*, not 0"),
        (generator(), {"num_classes": 4}, "num_classes must be 6, the columns of .* or of the last of them, .*, not 4"),
    ],
)
def test_where_the_cross_entropy_has_no_sense(made: nn.Module, options: dict[str, int], sentence: str) -> None:
    d = MLP([16, 16, 1])
    with pytest.raises(ValueError, match=sentence):
        fastgan.TrainStep(made, d, *optimizers(made, d), condition_weight=1.0, **options)
    for weight, words in ((-1.0, "at least 0, not -1"), ("1", "a number, not str '1'")):
        with pytest.raises((TypeError, ValueError), match=f"condition_weight must be .*{words}"):
            fastgan.TrainStep(made, d, *optimizers(made, d), condition_weight=weight)


# Options.


def test_defaults_suit_tables(tmp_path: Path) -> None:
    data = load(write_csv(tmp_path / "people.csv", mixed_table(1000)))  # one row less, and it would be a small one

    def config(**options: object) -> TrainConfig:
        return TrainConfig.for_dataset(data, "people.csv", **options)

    default = config()
    assert (default.loss, default.gp_weight, default.pac, default.r1_gamma) == ("wasserstein", 10.0, 10, 0.0)
    assert (default.batch_size, default.conditional, default.condition_weight) == (500, True, 1.0)
    assert (config(loss="hinge").gp_weight, config(loss="hinge").r1_gamma) == (0.0, 0.3)
    assert config(batch_size=64).pac == 1
    assert config(batch_size=60).pac == 10
    assert config(conditional=False).condition_weight == 0.0
    with pytest.raises(ValueError, match="condition_weight must be 0 but for a conditional run on a table"):
        config(conditional=False, condition_weight=1.0)
    with pytest.raises(ValueError, match="condition_weight must be 0 but for a conditional run on a table"):
        TrainConfig.for_dataset(load("digits"), "digits", condition_weight=1.0)
    (tmp_path / "reals.csv").write_text("a,b\n" + "".join(f"{i}.5,\n{i}.25,{i}.5\n" for i in range(6)))
    reals = load(tmp_path / "reals.csv")
    few = TrainConfig.for_dataset(reals, "reals.csv")
    assert (few.batch_size, few.pac, few.conditional, few.condition_weight) == (12, 1, False, 0.0)
    assert (few.steps, few.g_hidden, few.d_lr, few.beta1) == (2000, (128, 128), 1e-3, 0.0)
    assert TrainConfig.for_dataset(load(write_csv(tmp_path / "few.csv", mixed_table(999))), "few.csv").pac == 1
    # With another loss they are those of all tables.
    assert (TrainConfig.for_dataset(reals, "reals.csv", loss="hinge").d_lr, default.d_lr) == (2e-4, 2e-4)
    with pytest.raises(ValueError, match=r"conditional must be False for reals, which has no discrete columns"):
        TrainConfig.for_dataset(reals, "reals.csv", conditional=True)


# Runs.


def test_a_run_and_its_synthetic_table(trained: Path, table: Path, tmp_path: Path) -> None:
    assert {file.name for file in trained.iterdir()} >= {"config.toml", "dataset.json", "loss.png", "samples"}
    log = (trained / "log.txt").read_text()
    assert "column     kind        holds" in log
    assert "gain       continuous" in log
    out = tmp_path / "synthetic.csv"
    assert run("sample", trained, "--out", out, "-n", 200) == f"200 samples in {out}\n"
    rows = [line.split(",") for line in out.read_text().splitlines()]
    assert rows[0] == list(mixed_table(2))
    data = load(table)
    again = load(out, known=data.table)  # every cell is one that its column can hold
    assert len(again) == 200
    assert all(len(row[1].partition(".")[2]) == 2 for row in rows[1:])
    run("sample", trained, "--out", tmp_path / "again.csv", "-n", 200)
    assert (tmp_path / "again.csv").read_bytes() == out.read_bytes()
    run("sample", trained, "--out", tmp_path / "x.png", "-n", 50)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_of_columns(tmp_path: Path) -> None:
    """A plot for each of the first columns, the real data in grey behind the samples in blue; where a column has no
    value too."""
    data = load(write_csv(tmp_path / "people.csv", mixed_table(200)))
    assert data.table is not None
    values = data.table.decode(data.samples)
    score = [column.name for column in data.table.columns].index("score")
    blank = list(values)
    blank[score] = np.full(len(data.samples), np.nan)
    for name, drawn, behind in (("real", values, None), ("both", blank, values)):
        pictures.save_columns(data.table, drawn, tmp_path / f"{name}.png", behind, most=6)
        picture = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).astype(int)
        assert picture.shape == (2 * 200, 4 * 250, 3)
        is_blue = picture[..., 2] - picture[..., 0] > 60
        is_grey = (np.ptp(picture, axis=2) == 0) & (abs(picture[..., 0] - 191) < 20)
        plots = [(slice(200 * (i // 4), 200 * (i // 4 + 1)), slice(250 * (i % 4), 250 * (i % 4 + 1))) for i in range(6)]
        has_blue = [bool(is_blue[plot].sum() > 20) for plot in plots]
        assert has_blue == [name == "real" or i != score for i in range(6)]
        assert not is_blue[200:, 500:].any()  # no seventh plot
        if behind is not None:
            assert is_grey[plots[score]].sum() > 20


def test_rows_with_a_level(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.csv"
    run("sample", trained, "--out", out, "-n", 30, "--where", "member=yes")
    assert {row.split(",")[-3] for row in out.read_text().splitlines()[1:]} == {"yes"}
    for where, words in (
        ("sex=X", "where must ask for a level that sex has ('F', 'M'), not 'X'"),
        ("age=3", "where must name a discrete column (job, education,"),
        ("sex", "where must ask for a level that sex has"),
    ):
        result = CliRunner().invoke(app, ["sample", str(trained), "--out", str(out), "--where", where])
        assert result.exit_code == 2
        assert words in result.stderr


def test_refusals_of_sample(trained: Path, tmp_path: Path) -> None:
    digits = fastgan.Trainer("digits", steps=1, g_hidden=(8,), d_hidden=(8,), runs=str(tmp_path)).train(quiet=True)
    for words, sentence in (
        ([trained, "--out", "x.npy"], "out must end in .csv or .png for a table of words and numbers"),
        ([trained, "--out", "x.txt"], "out must end in .png, .gif, .npy, .npz or .csv"),
        ([digits, "--out", "x.csv"], "out must end in .png, .gif, .npy or .npz for images"),
        ([digits, "--where", "a=b"], "is no run on a table"),
    ):
        result = CliRunner().invoke(app, ["sample", *map(str, words)])
        assert result.exit_code == 2
        assert sentence in result.stderr


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    columns = {name: cells for name, cells in mixed_table(600).items() if name in ("gain", "score", "job")}
    table = write_csv(tmp_path / "jobs.csv", columns)
    options = {"batch_size": 100, "log_every": 2, **SMALL}
    whole = fastgan.Trainer(table, steps=8, runs=str(tmp_path / "a"), **options)
    whole.train(quiet=True)
    part = fastgan.Trainer(table, steps=5, runs=str(tmp_path / "b"), **options)
    resumed = fastgan.Trainer.resume(part.train(quiet=True), steps=8)
    resumed.train(quiet=True)
    for a, b in zip(whole.generator.parameters(), resumed.generator.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(whole.sample(5), resumed.sample(5))
    text = table.read_text()
    (tmp_path / "people.csv").write_text(text)
    moved = fastgan.Trainer(tmp_path / "people.csv", steps=1, runs=str(tmp_path / "c"), **options).train(quiet=True)
    (tmp_path / "people.csv").write_text(text.replace("nurse", "clerk", 1))
    with pytest.raises(DataError, match="but it has changed"):
        fastgan.Trainer.resume(moved, steps=2)


def test_a_run_on_numbers_is_resumed_as_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of before tables were known, whose column of few numbers is no discrete one."""
    path = tmp_path / "x.csv"
    path.write_text("a,b\n" + "".join(f"{i * 0.5},{i % 3}\n" for i in range(60)))
    assert load(path).table is not None
    with monkeypatch.context() as patched:  # nor did a checkpoint hold the options
        patched.setattr(fastgan.Trainer, "_facts", lambda self: {})
        begun = fastgan.Trainer(path, steps=2, columns="plain", runs=str(tmp_path), **SMALL).train(quiet=True)
    lines = (begun / "config.toml").read_text().splitlines(keepends=True)
    (begun / "config.toml").write_text("".join(x for x in lines if not x.startswith(("columns", "condition_weight"))))
    facts = json.loads((begun / "dataset.json").read_text())
    assert "table" not in facts
    del facts["layout"]
    (begun / "dataset.json").write_text(json.dumps(facts))
    assert fastgan.Trainer.resume(begun, steps=3).dataset.width == 2
    run("sample", begun, "--out", tmp_path / "y.csv", "-n", 4)
    assert len((tmp_path / "y.csv").read_text().splitlines()) == 4


def test_numbers_alone_give_a_table_back(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a;b\n" + "".join(f"{i};{i * 0.25}\n" for i in range(50)))
    begun = fastgan.Trainer(path, steps=2, runs=str(tmp_path), **SMALL).train(quiet=True)
    run("sample", begun, "--out", tmp_path / "y.csv", "-n", 20)
    rows = [line.split(";") for line in (tmp_path / "y.csv").read_text().splitlines()]
    assert rows[0] == ["a", "b"]
    assert all(0 <= int(a) <= 49 and 0 <= float(b) <= 12.25 for a, b in rows[1:])
    assert all(len(b.partition(".")[2]) <= 2 for _, b in rows[1:])


def test_a_table_without_discrete_columns(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n" + "".join(f"{i * 0.5},{'' if i % 4 else i}\n" for i in range(40)))
    trainer = fastgan.Trainer(path, steps=3, runs=str(tmp_path), **SMALL)
    begun = trainer.train(quiet=True)
    assert trainer.train_step.num_classes == 0
    assert trainer.train_step.condition_weight == 0
    run("sample", begun, "--out", tmp_path / "y.csv", "-n", 20)
    assert (tmp_path / "y.csv").read_text().startswith("a,b\n")


def test_the_command_line_shows_the_columns_and_takes_them(table: Path, tmp_path: Path) -> None:
    few = ["--steps", 1, "--g-hidden", "8", "--d-hidden", "8", "--runs", tmp_path]
    shown = run("train", table, *few, "--columns", "month=integer,town=drop")
    assert "month      integer" in shown
    assert "town       drop" in shown
    assert 'columns = "month=integer,town=drop"' in next(tmp_path.glob("*/config.toml")).read_text()
    run("sample", "--runs", tmp_path, "--out", tmp_path / "x.csv")
    assert "town" not in (tmp_path / "x.csv").read_text().splitlines()[0]
    result = CliRunner().invoke(app, ["train", "digits", "--columns", "a=drop"])
    assert result.exit_code == 2
    assert "columns must be given with a .csv file alone" in result.stderr


@pytest.mark.deep
@pytest.mark.parametrize("name", ["breast_cancer", rest("wine"), rest("diabetes"), "mixed"])
def test_synthetic_tables_have_the_kinds_of_the_real_ones(name: str, tmp_path: Path) -> None:
    """As pandas reads them. After so few steps the columns are already nearer than noise is."""
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "x.csv"
    if name == "mixed":
        write_csv(path, mixed_table(30_000))
    else:
        import sklearn.datasets

        getattr(sklearn.datasets, f"load_{name}")(as_frame=True).frame.to_csv(path, index=False)
    trainer = fastgan.Trainer(path, steps=300, runs=str(tmp_path), ema_decay=0.95)
    begun = trainer.train(quiet=True)
    run("sample", begun, "--out", tmp_path / "y.csv", "-n", 2000)
    real, synthetic = (pandas.read_csv(file) for file in (path, tmp_path / "y.csv"))
    assert list(real.columns) == list(synthetic.columns)
    assert (real.dtypes == synthetic.dtypes).all()
    for column in real.select_dtypes("number"):
        assert synthetic[column].dropna().between(real[column].min(), real[column].max()).all()
    for column in real.select_dtypes(exclude="number"):
        assert set(synthetic[column].dropna()) <= set(real[column].dropna())
    scores = json.loads(run_report(begun, tmp_path))
    assert scores["shape"] > 0.7
    assert scores["copies"] < 0.01


def run_report(begun: Path, folder: Path) -> str:
    run("eval", begun, "--out", folder / "report.json")
    return (folder / "report.json").read_text()
