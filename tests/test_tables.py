"""Tables of words, numbers, dates and missing values: read, told apart, turned into samples, and written back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.mixed_table import mixed_table, write_csv
from fastgan.data import DataError, Dataset, load
from fastgan.data.modes import SUBSAMPLE, fit_modes
from fastgan.data.numbers import NumberForm, parse_dates, parse_numbers
from fastgan.data.table import Table

pytestmark = pytest.mark.filterwarnings("ignore:.*threadpoolctl.*")


def written(folder: Path, text: str | bytes, **options: Any) -> Dataset:
    content = text if isinstance(text, bytes) else text.encode()
    (folder / "x.csv").write_bytes(content)
    return load(folder / "x.csv", **options)


def refusal(folder: Path, text: str | bytes, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        written(folder, text, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def kinds(dataset: Dataset) -> dict[str, str]:
    assert dataset.table is not None
    return {column.name: column.kind for column in dataset.table.columns}


def back(dataset: Dataset) -> bytes:
    """The table that its own samples give."""
    assert dataset.table is not None
    return dataset.table.write(dataset.table.decode(dataset.samples), len(dataset))


# What people have.

PEOPLE = "name,age,pay,born,member,note\n" + "".join(
    f"{('Ann', 'Bob', 'Cid')[i % 3]},{20 + i},{i * 1.25:.2f},{1990 + i % 9}-0{1 + i % 9}-1{i % 9},"
    f"{('yes', 'no', '')[i % 3]},\n"
    for i in range(40)
)


def test_kinds_and_the_way_back(tmp_path: Path) -> None:
    data = written(tmp_path, PEOPLE)
    found = {"name": "discrete", "age": "integer", "pay": "continuous", "born": "date"}
    assert kinds(data) == {**found, "member": "discrete", "note": "constant"}
    assert back(data) == PEOPLE.encode()
    assert data.labels is None
    assert data.conditions == 3 + 3
    assert data.samples.shape == (40, sum(data.table.widths))
    assert data.table.segments == ("tanh", "gumbel_softmax") * 3 + ("gumbel_softmax",) * 2
    assert [data.table.columns[i].name for i in data.table.order] == ["age", "pay", "born", "name", "member"]


def test_a_mixed_table(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "x.csv", mixed_table(2000))
    data = load(path)
    found = kinds(data)
    assert [name for name, kind in found.items() if kind in ("continuous", "integer")] == [
        "age",
        "pay",
        "gain",
        "score",
    ]
    assert [name for name, kind in found.items() if kind == "discrete"] == list(found)[4:]
    assert back(data) == path.read_bytes()
    gain, score = data.table.columns[2:4]
    assert gain.modes.spikes == (0.0,)
    assert score.missing == ""
    assert score.modes.has_missing
    assert len(data.table.columns[6].levels) > 30
    assert torch.equal(load(path).samples, data.samples)
    assert not torch.equal(load(path, seed=1).samples, data.samples)


def test_what_is_kept_of_a_table_is_json(tmp_path: Path) -> None:
    data = written(tmp_path, PEOPLE)
    facts = json.loads(json.dumps(data.describe()))
    table = Table.from_json(facts["table"])
    assert table.columns == data.table.columns
    values = table.decode(data.samples)
    assert table.write(values, len(data)) == PEOPLE.encode()
    again = load(tmp_path / "x.csv", known=table)
    assert torch.equal(again.samples, data.samples)
    assert again.describe() == data.describe()
    assert refusal(tmp_path, PEOPLE.replace("Cid", "Eve"), known=table).endswith(
        "has a level of name that the run does not know"
    )
    assert "must have the columns name, age" in refusal(tmp_path, PEOPLE.replace("age", "years"), known=table)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "cp1252"])
def test_encodings_and_separators_come_back(tmp_path: Path, separator: str, encoding: str) -> None:
    """cp1252 has a dash that Latin-1 has not; a quoted cell holds the separator."""
    odd = "ß" if encoding == "latin-1" else "\N{EN DASH}"
    rows = [("größe", f"na{odd}me"), *((f'"{i}{separator}a"', ("é", "ü")[i % 2]) for i in range(6))]
    content = "".join(separator.join(row) + "\n" for row in rows).encode(encoding)
    data = written(tmp_path, content)
    assert [column.name for column in data.table.columns] == ["größe", f"na{odd}me"]
    assert back(data) == content


def test_quotes_blanks_and_newlines(tmp_path: Path) -> None:
    text = '"a ""b""","c\nd"\n' + "".join(f' "x, {i % 2}" , {("u", "v")[i % 2]}\n' for i in range(4))
    data = written(tmp_path, text)
    assert [column.name for column in data.table.columns] == ['a "b"', "c\nd"]
    assert data.table.columns[0].levels == ("x, 0", "x, 1")
    assert back(data).decode() == '"a ""b""","c\nd"\n' + '"x, 0",u\n"x, 1",v\n' * 2


def test_without_names(tmp_path: Path) -> None:
    text = "".join(f"{i * 0.37:.2f},{('red', 'blue')[i % 2]}\n" for i in range(30))
    data = written(tmp_path, text)
    assert kinds(data) == {"column 1": "continuous", "column 2": "discrete"}
    assert back(data) == text.encode()
    odd = "name,2019\n" + "".join(f"{('red', 'blue')[i % 2]},{i}\n" for i in range(6))
    assert "'name' is not in its column again" in refusal(tmp_path, odd)


# Numbers.


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["1.50", "2.25", "3.00"], "continuous"),
        (["1.5", "2.25", "3.0"], "continuous"),
        (["-3", "0", "12"], "integer"),
        (["-3.0", "0.0", "12.0"], "integer"),
        (["0.038075906433423026", "-0.001882016527791", "2.0"], "continuous"),
        (["1e-05", "0.25", "300.0"], "continuous"),
        (["123456789", "-5", "0"], "integer"),
        (["", "4", "5"], "integer"),
        (["NA", "4.25", "5.125"], "continuous"),
        (["?", "4.25", "4.25"], "continuous"),
    ],
)
def test_numbers_come_back_as_they_are_written(tmp_path: Path, cells: list[str], kind: str) -> None:
    text = "a,b\n" + "".join(f"{cell},{('u', 'v')[i % 2]}\n" for i, cell in enumerate(cells * 2))
    data = written(tmp_path, text)
    assert kinds(data)["a"] == kind
    assert back(data) == text.encode()


def test_decimal_commas(tmp_path: Path) -> None:
    text = "a;b\n" + "".join(f"{i},{i}5;{('u', 'v')[i % 2]}\n" for i in range(6))
    data = written(tmp_path, text)
    assert kinds(data) == {"a": "continuous", "b": "discrete"}
    assert back(data) == text.encode()


def test_drawn_numbers_have_the_decimals_and_range_of_the_data(tmp_path: Path) -> None:
    data = written(tmp_path, PEOPLE)
    noisy = data.samples + 0.7 * torch.randn(data.samples.shape)
    rows = [line.split(",") for line in data.table.write(data.table.decode(noisy), 40).decode().splitlines()[1:]]
    assert all(20 <= int(row[1]) <= 59 for row in rows)
    assert all(len(row[2].partition(".")[2]) == 2 and 0 <= float(row[2]) <= 39 * 1.25 for row in rows)
    assert parse_dates([row[3] for row in rows])[1].format == "%Y-%m-%d"


def test_number_forms() -> None:
    assert NumberForm.of(["1.5", "2.25"], comma=False) == NumberForm(2, fixed=False, pointed=True)
    assert NumberForm.of(["1", "2.5"], comma=False) == NumberForm(1, fixed=False, pointed=False)
    assert NumberForm(1, fixed=True).write(-0.04) == "0.0"
    assert NumberForm(0).write(-0.0) == "0"
    assert parse_numbers(["1", "x"]) is None
    assert parse_numbers(["007", "8"]) is None  # a code


def test_codes_with_zeros_in_front_are_words(tmp_path: Path) -> None:
    text = "zip,b\n" + "".join(f"0{i % 7}12,{('u', 'v')[i % 2]}\n" for i in range(30))
    data = written(tmp_path, text)
    assert kinds(data)["zip"] == "discrete"
    assert back(data) == text.encode()


# Dates.


@pytest.mark.parametrize(
    "dates",
    [
        ["2024-02-29", "1999-12-31"],
        ["2024-02-29 23:59:01", "1999-12-31 00:00:00"],
        ["2024-02-29T23:59:01Z", "1999-12-31T00:00:00Z"],
        ["2024-02-29T23:59:01.125", "1999-12-31T00:00:00.000"],
        ["2024-02-29T23:59:01+02:00", "1999-12-31T00:00:00+02:00"],
        ["2024-02-29 23:59", "1999-12-31 00:00"],
        ["31.12.1999", "01.02.2000"],
        ["12/31/1999", "02/01/2000"],
        ["31/12/1999", "01/02/2000"],
        ["1/2/2000", "12/31/1999"],
        ["Feb 03, 2001", "Mar 14, 2002"],
        ["3-Feb-01", "14-Mar-02"],
        ["11:59:00 PM", "11:58:01 AM"],
        ["23:59", "08:00"],
        ["1999-12", "2001-01"],
    ],
)
def test_dates_come_back_in_their_form(tmp_path: Path, dates: list[str]) -> None:
    if dates[0].endswith("PM"):
        dates = [f"2001-01-01 {date}" for date in dates]
    text = "when;b\n" + "".join(f"{date};{('u', 'v')[i % 2]}\n" for i, date in enumerate(dates * 3))
    data = written(tmp_path, text)
    assert kinds(data)["when"] == "date"
    assert back(data) == text.encode()


def test_a_form_of_ones_own(tmp_path: Path) -> None:
    text = "when,b\n" + "".join(f"202{i % 5}013{i % 2},{('u', 'v')[i % 2]}\n" for i in range(200))
    assert kinds(written(tmp_path, text))["when"] == "discrete"
    data = written(tmp_path, text, columns="when=date:%Y%m%d")
    assert kinds(data)["when"] == "date"
    assert back(data) == text.encode()


# Tables of numbers alone.


def test_numbers_alone_are_scaled_as_they_were(tmp_path: Path) -> None:
    """Nothing of them is fitted or conditional, and they are written back all the same."""
    text = "a,b\n" + "".join(f"{i},{i * 0.25}\n" for i in range(50))
    data = written(tmp_path, text)
    assert data.table is None
    assert data.samples.shape == (50, 2)
    assert (data.samples.min().item(), data.samples.max().item()) == (-1.0, 1.0)
    assert [column.kind for column in data.layout.columns] == ["integer", "continuous"]


def test_numbers_with_a_discrete_column(tmp_path: Path) -> None:
    """Of few numbers, ten rows or more for each; `plain` and a column of labels keep the numbers as they were."""
    text = "a,b\n" + "".join(f"{i * 0.5},{i % 3}\n" for i in range(60))
    data = written(tmp_path, text)
    assert kinds(data) == {"a": "continuous", "b": "discrete"}
    assert data.table.columns[1].levels == ("0", "1", "2")
    assert back(data) == text.encode()
    plain = written(tmp_path, text, columns="plain")
    assert plain.table is None
    assert plain.samples.shape == (60, 2)
    labelled = written(tmp_path, text.replace("b", "label"))
    assert labelled.table is None
    assert labelled.num_classes == 3
    assert written(tmp_path, "a,b\n" + "".join(f"{i * 0.5},{i % 3}\n" for i in range(29))).table is None


@pytest.mark.parametrize("name", ["breast_cancer", "wine", "diabetes"])
def test_real_tables_of_scikit_learn(tmp_path: Path, name: str) -> None:
    pandas = pytest.importorskip("pandas")
    import sklearn.datasets

    frame = getattr(sklearn.datasets, f"load_{name}")(as_frame=True).frame
    frame.to_csv(tmp_path / "x.csv", index=False)
    data = load(tmp_path / "x.csv")
    assert kinds(data)["target"] == ("integer" if name == "diabetes" else "discrete")
    (tmp_path / "y.csv").write_bytes(back(data))
    again = pandas.read_csv(tmp_path / "y.csv")
    pandas.testing.assert_frame_equal(again, pandas.read_csv(tmp_path / "x.csv"), check_exact=True)


def test_the_same_numbers_as_pandas(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    path = write_csv(tmp_path / "x.csv", mixed_table(500, seed=3))
    (tmp_path / "y.csv").write_bytes(back(load(path)))
    frame, again = pandas.read_csv(path), pandas.read_csv(tmp_path / "y.csv")
    pandas.testing.assert_frame_equal(again, frame, check_exact=True)


# Modes.


def test_a_mixture_of_two_and_a_value_that_comes_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    column = np.concatenate([rng.normal(0, 1, 3000), rng.normal(100, 1, 1000), np.full(1000, 50.0), [np.nan] * 10])
    (modes,) = fit_modes([column], seed=0)
    assert modes.spikes == (50.0,)
    assert modes.has_missing
    assert modes.count == len(modes.means) + 2
    assert sum(modes.weights) == pytest.approx(1)
    near = sum(weight for mean, weight in zip(modes.means, modes.weights, strict=True) if mean > 90)
    assert near == pytest.approx(0.25, abs=0.01)
    picked, places = modes.encode(column, np.random.default_rng(1))
    assert np.abs(places).max() <= 1.5
    assert (places[4000:] == 0).all()
    assert (picked[4000:5000] == modes.count - 2).all()
    assert (picked[5000:] == modes.count - 1).all()
    found = modes.decode(picked, places)
    assert np.abs(found - column)[:5000].max() < 1e-9
    assert np.isnan(found[5000:]).all()


def test_mixtures_do_not_hang_on_the_unit(tmp_path: Path) -> None:
    column = np.random.default_rng(0).gamma(2, 1, 2 * SUBSAMPLE)
    small, large = (fit_modes([column * unit], seed=0)[0] for unit in (1e-12, 1e12))
    assert np.array(small.means) * 1e24 == pytest.approx(np.array(large.means), rel=1e-6)


# Bad tables.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\nx,1\n", ["line 2", "only row"]),
        ("a,b\nx,y\nx,y\n", ["every column has one value", "nothing to learn"]),
        ("a,b\n" + "".join(f"{i},{('x' if i == 7 else i)}\n" for i in range(20)), ["line 9, column 2 (b)", "'x'"]),
        ("a,b\nx,1\ny,inf\n", ["line 3, column 2", "inf", "not finite"]),
        ("a,b\nx,1\ny,9007199254740993\n", ["line 3, column 2", "float64 cannot hold exactly"]),
        ("a,b\nx,1\ny\n", ["line 3", "has 1 columns, but 2 are needed"]),
        ("a,b\nx,1\ny,2,3\n", ["line 3", "has 3 columns, but 2 are needed", "quote a cell"]),
        ("a,b\n", ["no rows"]),
        ("id,b\n" + "".join(f"u{i},{i % 2}\n" for i in range(10_000)), ["column 1 (id)", "10,000", "id=drop"]),
    ],
)
def test_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    sentence = refusal(tmp_path, text)
    assert "x.csv" in sentence
    for word in words:
        assert word in sentence


def test_what_just_works(tmp_path: Path) -> None:
    one_value = written(tmp_path, "a,b,c\n" + "".join(f"same,,{i}\n" for i in range(9)))
    assert kinds(one_value) == {"a": "constant", "b": "constant", "c": "integer"}
    assert back(one_value).decode().splitlines()[1] == "same,,0"
    twice = written(tmp_path, "a,a\n" + "".join(f"{i}.5,{('u', 'v')[i % 2]}\n" for i in range(9)))
    assert [column.kind for column in twice.table.columns] == ["continuous", "discrete"]
    assert "'a' names 2 columns" in refusal(tmp_path, "a,a\nu,1\nv,2\n", columns="a=drop")
    few = written(tmp_path, "a,b\n" + "".join(f"{('1', '2', '3+')[i % 3]},{i}\n" for i in range(60)))
    assert few.table.columns[0].levels == ("1", "2", "3+")
    many = written(tmp_path, "id,b\n" + "".join(f"u{i},{i % 2}\n" for i in range(1200)), columns="id=discrete")
    assert many.conditions == 1202
    dropped = written(tmp_path, "id,b\n" + "".join(f"u{i},{i % 2}\n" for i in range(1200)), columns="id=drop")
    assert back(dropped).decode().splitlines()[:3] == ["b", "0", "1"]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ("age", ["must be name=kind", "'age'"]),
        ("years=integer", ["'years' names no column", "name, age"]),
        ("age=real", ["age must be one of discrete, continuous, integer, date, drop or date:FORMAT, not 'real'"]),
        ("name=continuous", ["column 1 (name) must hold numbers", "'Ann'", "name=discrete"]),
        ("pay=integer", ["must hold whole numbers", "1.25", "pay=continuous"]),
        ("name=date", ["must hold dates", "'Ann'"]),
    ],
)
def test_columns_refused(tmp_path: Path, columns: str, words: list[str]) -> None:
    sentence = refusal(tmp_path, PEOPLE, columns=columns)
    for word in words:
        assert word in sentence


def test_columns_override(tmp_path: Path) -> None:
    data = written(tmp_path, PEOPLE, columns="age=discrete,pay=drop, born=discrete")
    assert kinds(data) == {
        **{"name": "discrete", "age": "discrete", "pay": "drop"},
        **{"born": "discrete", "member": "discrete", "note": "constant"},
    }
    odd = written(tmp_path, '"a,b",c\n1,u\n2,v\n', columns='"a,b=discrete"')
    assert kinds(odd) == {"a,b": "discrete", "c": "discrete"}
    with pytest.raises(TypeError, match="columns must be a string"):
        load(tmp_path / "x.csv", columns=3)
    with pytest.raises(DataError, match=r"columns must be given with a \.csv file alone, not with 'digits'"):
        load("digits", columns="a=drop")
