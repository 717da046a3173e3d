"""What goes into a data set comes back: the very values of the file, or one sentence that says why not.

Every reader is asked the same: that `unscale` of the samples is what was written, exactly, or that the file is refused.
"""

from __future__ import annotations

import csv
import io
import json
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fastgan
from fastgan.data import DataError, Dataset, load
from fastgan.training.run_folder import RunFolder
from fastgan.training.run_samples import sample_run
from fastgan.training.sample_files import write_samples

RNG = np.random.default_rng(0)
SMALL: dict[str, Any] = {"g_hidden": (8,), "d_hidden": (8,), "latent_size": 4, "batch_size": 16}


def refused(path: Path, *words: str) -> str:
    """The one sentence with which a file is refused; nothing else is said, by numpy or Pillow either."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError) as caught:
            load(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def values(data: Dataset) -> np.ndarray:
    back = data.unscale(data.samples)
    assert back.dtype == torch.float64
    assert data.samples.dtype == torch.float32
    assert data.samples.abs().max() <= 1
    return back.numpy()


# Arrays.

WHOLE = RNG.integers(-1000, 1000, (40, 3))
REAL = RNG.normal(size=(40, 3)) * [1e-3, 1, 1e6] + [0, 5, -1e9]
ARRAYS: dict[str, np.ndarray] = {
    **{name: (WHOLE % 100).astype(name) for name in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")},
    "big-endian": REAL.astype(">f8"),
    "big-endian integers": WHOLE.astype(">i4"),
    "Fortran order": np.asfortranarray(REAL),
    "a view": np.repeat(REAL, 2, axis=0)[::2],
    "real": REAL,
    "real in 32 bits": REAL.astype(np.float32),
    "Unix times": 1_700_000_000 + RNG.integers(0, 31_000_000, (500, 2)),
    "milliseconds": 1_700_000_000_000 + RNG.integers(0, 10_000_000, (500, 2)),
    "beyond 2^24": np.array([[2**24 + 1, 0], [2**24 + 3, 1]]),
    "up to 2^53": np.array([[2**53 - 1], [3], [-(2**53)]]),
    "multiples beyond 2^53": np.array([[2**63], [2**60 + 2**10]], np.uint64),
    "the least integer": np.array([[-(2**63)], [0]]),
    "neighbours in float64": np.array([[1e15], [np.nextafter(1e15, 2e15)]]),
    "subnormal": np.array([[5e-310], [1e-310], [0.0]]),
    "spread wide": np.array([[1e-30], [-3e38], [3e38]]),
    "constant": np.full((3, 2), 7.1),
    "constant of 8 bits": np.full((3, 2), 7, np.uint8),
    "one row": np.array([[3.3, 4.4]]),
    "one column": REAL[:, :1],
    "one value": np.array([[1e9 + 0.5]]),
    "images of 8 bits": RNG.integers(0, 256, (5, 4, 3), dtype=np.uint8),
    "images of 16 bits": RNG.integers(0, 65536, (5, 4, 3), dtype=np.uint16),
    "colour of 16 bits": RNG.integers(0, 65536, (5, 4, 4, 3), dtype=np.uint16),
    "real images": RNG.random((5, 4, 4)),
    "images of one channel": RNG.random((5, 4, 4, 1)).astype(np.float32),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("packed", [False, True], ids=["npy", "npz"])
def test_arrays(tmp_path: Path, name: str, packed: bool) -> None:
    array = ARRAYS[name]
    path = tmp_path / ("x.npz" if packed else "x.npy")
    np.savez(path, X=array) if packed else np.save(path, array)
    back = values(load(path)).reshape(array.shape)
    # Integers are compared as such: numpy would round them before it compares.
    assert (back.astype(array.dtype) == array).all()
    assert (back == array.astype(np.float64)).all()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([[0], [2**53 + 1]]), ["9007199254740993", "row 1, column 0", "float64"]),
        (np.array([[2**64 - 1]], np.uint64), ["18446744073709551615"]),
        (np.full((2, 2, 2), 2**60 + 1), ["index (0, 0, 0)"]),
        (np.ones((2, 2), np.longdouble) / 3, ["float64"]),
        (np.ones((2, 2), bool), ["dtype bool"]),
        (np.ones((2, 2), complex), ["dtype complex128"]),
        (np.ones((2, 2), "M8[s]"), ["dtype datetime64[s]"]),
        (np.ones((2, 2), "f4,i4"), ["dtype"]),
        (np.array([[1, "a"]]), ["dtype <U"]),
        (np.array([[1.0, np.inf]]), ["inf", "not finite"]),
        (np.array([[np.nan]], np.float16), ["nan", "not finite"]),
        (np.array([[1e39]]), ["too large"]),
    ],
    ids=str,
)
def test_arrays_refused(tmp_path: Path, array: np.ndarray, words: list[str]) -> None:
    np.save(tmp_path / "x.npy", array)
    refused(tmp_path / "x.npy", *words)
    np.savez(tmp_path / "x.npz", array)
    refused(tmp_path / "x.npz", *words)


def test_arrays_by_hand() -> None:
    for array in (REAL.tolist(), torch.from_numpy(REAL), np.ma.array(REAL), memoryview(REAL)):
        assert (values(fastgan.data.from_array(array, None, "x", "x")) == REAL).all()
    with pytest.raises(DataError, match="x has masked values"):
        fastgan.data.from_array(np.ma.masked_less(REAL, 0), None, "x", "x")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(tmp_path / "sprung"), "w"))

    objects = np.array([[Trap()]], dtype=object)
    np.save(tmp_path / "x.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "x.npz", X=objects, allow_pickle=True)
    np.savez(tmp_path / "y.npz", X=np.ones((1, 2)), y=objects[0], allow_pickle=True)
    for name in ("x.npy", "x.npz", "y.npz"):
        refused(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_npz_keys(tmp_path: Path) -> None:
    for key in ("a b", "a/b", "ä", "arr_0", ""):
        np.savez(tmp_path / "x.npz", **{key: REAL})
        assert (values(load(tmp_path / "x.npz")) == REAL).all()
    np.savez(tmp_path / "x.npz", y=np.arange(40))
    refused(tmp_path / "x.npz", "holds the arrays y")


def test_samples_resolve_the_range() -> None:
    """Between the data's values a sample moves by the range times 2^-24 at most, however far off the values lie."""
    column = 1_700_000_000 + RNG.integers(0, 31_000_000, (500, 1)).astype(np.float64)
    data = fastgan.data.from_array(column, None, "times", "times")
    span = column.max() - column.min()
    for start in (-1.0, -0.3, 0.1, 0.7):
        samples = torch.tensor([[start]])
        step = data.unscale(torch.nextafter(samples, torch.ones(1, 1))) - data.unscale(samples)
        assert 0 < step.item() <= span * 2**-24
    grid = torch.linspace(-1, 1, 1001)[:, None]
    exact = grid.double() * span / 2 + (column.max() + column.min()) / 2
    assert (data.unscale(grid) - exact).abs().max() <= span * 2**-24


def test_values_closer_than_samples_resolve_come_back_as_close() -> None:
    column = np.concatenate([1e-9 * np.arange(50), [1.0]])[:, None]
    data = fastgan.data.from_array(column, None, "x", "x")
    assert np.abs(values(data) - column).max() <= 2**-24


def test_a_value_far_smaller_than_the_formulas_rounding() -> None:
    column = np.array([-1e9, 1e-12, 1e9 + 0.5])[:, None]
    assert np.array_equal(values(fastgan.data.from_array(column, None, "x", "x")), column)


def test_unscale_is_differentiable_and_takes_any_shape() -> None:
    data = fastgan.data.from_array(REAL, None, "x", "x")
    samples = data.samples[:6].reshape(2, 3, 3).clone().requires_grad_()
    data.unscale(samples).sum().backward()
    assert torch.equal(samples.grad[0, 0], data.scale.float())


# Tables.

TABLES = {
    "plain": "1,2\n3,4\n",
    "no newline at the end": "1,2\n3,4",
    "CRLF": "1,2\r\n3,4\r\n",
    "CR": "1,2\r3,4\r",
    "byte order mark": "\ufeff1,2\n3,4\n",
    "blank lines": "\n\n1,2\n\n   \n3,4\n\n",
    "names": "a,b\n1,2\n3,4\n",
    "names after blank lines": "\n\r\na,b\n1,2\n3,4\n",
    "quoted": '"a,1","b\nc"\n"1","2"\n"3",4\n',
    "spaces": "a, b\n 1, 2\n3 ,4 \n",
    "semicolons": "a;b\n1;2\n3;4\n",
    "semicolons without names": "1;2\n3;4\n",
    "tabs": "a\tb\n1\t2\n3\t4\n",
    "other notations": "1e0,+2\n3.0,.4e1\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(TABLES[name].encode())
    assert values(load(path)).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    "name", ["real", "Unix times", "milliseconds", "up to 2^53", "one row", "one column", "one value"]
)
def test_tables_of_arrays(tmp_path: Path, name: str) -> None:
    text = io.StringIO()
    csv.writer(text).writerows(ARRAYS[name].tolist())
    (tmp_path / "x.csv").write_text(text.getvalue())
    assert (values(load(tmp_path / "x.csv")) == ARRAYS[name].astype(np.float64)).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["is empty"]),
        ("\n \n\r\n", ["is empty"]),
        ("a,b", ["no rows"]),
        ("a,b\n\n", ["no rows"]),
        ("\ufeffa,b\r\n", ["no rows"]),
        ("1,2,x\n3,4,5\n", ["line 1, column 3", "'x'"]),
        ("\n1,x\n2,3\n", ["line 2, column 2", "'x'"]),
        ("9007199254740993\n1\n", ["line 1, column 1", "9007199254740993", "float64"]),
        ("a,b\n1,2\n3,-18014398509481985.0\n", ["line 3, column 2", "-18014398509481985.0"]),
        ("1_000\n2\n", ["line 1, column 1", "'1_000'", "no number"]),
        ("1e400\n1\n", ["inf"]),
        ("a;b\n1,5;2\n", ["line 2", "only row"]),
        ("a;b\n1,5;2\nx;2\n", ["line 3, column 1", "'x'", "no number"]),
        ("a" * 200_000 + "\n1\n", ["field limit"]),
        ("a,label\n1,cat\n", ["line 2", "only row"]),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_tables_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "x.csv").write_bytes(text.encode())
    refused(tmp_path / "x.csv", *words)


@pytest.mark.parametrize("content", [b"a,\xe9\n1,2\n", "1,2\n".encode("utf-16")], ids=["latin-1", "utf-16"])
def test_tables_that_are_no_utf8(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    assert values(load(tmp_path / "x.csv")).tolist() == [[1, 2]]


# Labels.


def labelled(folder: Path, labels: np.ndarray) -> Path:
    np.savez(folder / "x.npz", X=RNG.normal(size=(len(labels), 3)), y=labels)
    return folder / "x.npz"


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (np.arange(40) % 3, [0, 1, 2]),
        (np.arange(40) % 3 + 1, [1, 2, 3]),
        ((np.arange(40) % 2 + 1).astype(np.float32), [1, 2]),
        (np.zeros(40), [0]),
        (np.ones(40, np.uint8), [1]),
    ],
    ids=["from 0", "from 1", "floats", "one class", "one class, 1"],
)
def test_only_labels_that_samples_have_are_drawn(tmp_path: Path, labels: np.ndarray, classes: list[int]) -> None:
    path = labelled(tmp_path, labels)
    data = load(path)
    assert data.labels.tolist() == labels.tolist()
    assert data.classes == tuple(classes)
    trainer = fastgan.Trainer(str(path), steps=1, conditional=True, runs=str(tmp_path), **SMALL)
    run = trainer.train(quiet=True)
    drawn, facts = sample_run(run, 7)
    assert facts["classes"] == len(classes)
    for i, sample in enumerate(drawn):
        # The i-th of the noise, asked for the class whose turn it is.
        alone, _ = sample_run(run, 7, label=classes[i % len(classes)])
        torch.testing.assert_close(sample, alone[i], rtol=0, atol=0)
    assert torch.equal(trainer.sample(7), drawn)
    for absent in {0, 1, 2, 3, 4} - set(classes):
        for draw in (lambda label: sample_run(run, 1, label=label), lambda label: trainer.sample(1, label=label)):
            with pytest.raises(ValueError, match=rf"label must be .*, not {absent}"):
                draw(absent)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.arange(40) % 2 * 5, ["label 5 at index 1", "no sample has label 1"]),
        (np.arange(40) % 2 + 2, ["no sample has label 0"]),
        (np.arange(40) % 2 - 1, ["label -1 at index 0"]),
        (np.arange(40) % 2 / 2, ["label 0.5 at index 1"]),
        (np.where(np.arange(40) % 2, "cat", "dog"), ["dtype <U3"]),
        (np.arange(40) % 2 == 0, ["dtype bool"]),
        (np.full(40, np.nan), ["label nan"]),
        (np.full(40, 1e300), ["label 1e+300"]),
        (np.full(40, 2**64 - 1, np.uint64), ["label 18446744073709551615"]),
    ],
    ids=["gap", "from 2", "negative", "fractions", "strings", "bool", "nan", "huge", "uint64"],
)
def test_labels_refused(tmp_path: Path, labels: np.ndarray, words: list[str]) -> None:
    refused(labelled(tmp_path, labels), *words)


def test_gaps_of_a_data_set_by_hand_are_not_drawn(tmp_path: Path) -> None:
    data = Dataset("gaps", torch.rand(40, 3), torch.arange(40) % 2 * 3 + 1, 7)
    trainer = fastgan.Trainer(data, steps=1, conditional=True, runs=str(tmp_path), **SMALL)
    _, facts = sample_run(trainer.train(quiet=True), 4)
    assert facts["classes"] == 2
    assert torch.equal(trainer.sample(4)[::2], trainer.sample(4, label=1)[::2])
    assert torch.equal(trainer.sample(4)[1::2], trainer.sample(4, label=4)[1::2])
    with pytest.raises(ValueError, match=r"label must be one that samples of the data have \(1, 4\), not 2"):
        trainer.sample(1, label=2)


# The way back from a run folder.


def test_samples_of_a_run_come_in_the_units_of_the_data(tmp_path: Path) -> None:
    times = 1_700_000_000 + RNG.integers(0, 1000, (40, 1))
    np.save(tmp_path / "x.npy", times)
    run = fastgan.Trainer(str(tmp_path / "x.npy"), steps=1, runs=str(tmp_path), **SMALL).train(quiet=True)
    samples, facts = sample_run(run, 20)
    write_samples(samples, facts, tmp_path / "out.npy")
    out = np.load(tmp_path / "out.npy")
    middle, half = (times.max() + times.min()) / 2, (times.max() - times.min()) / 2
    np.testing.assert_array_equal(out, samples.double().numpy() * half + middle)
    assert len(np.unique(out)) == len(samples.unique())


def test_folders_of_older_versions(tmp_path: Path) -> None:
    """They say nothing of labels, and their scale and offset were float32: sampled and resumed as they were."""
    trainer = fastgan.Trainer("digits", steps=1, runs=str(tmp_path), **SMALL)
    run = trainer.train(quiet=True)
    facts = json.loads((run / "dataset.json").read_text())
    del facts["labels"]
    facts["scale"] = np.float32(facts["scale"]).item()
    (run / "dataset.json").write_text(json.dumps(facts))
    samples, facts = sample_run(run, 10)
    assert facts["classes"] == 10
    assert torch.equal(samples, trainer.sample(10))
    fastgan.Trainer.resume(run, steps=2).train(quiet=True)
    assert RunFolder(run).newest_checkpoint().name == "step_2"


# Images.


def png(depth: int, colour: int, raw: bytes, width: int = 2) -> bytes:
    """A PNG of one row."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


GREY = RNG.integers(0, 256, (6, 5), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (6, 5), dtype=np.uint16)
KEPT: dict[str, tuple[str, np.ndarray]] = {
    **{f"grey {ending}": (ending, GREY) for ending in ("png", "bmp", "tif", "pgm", "PNG")},
    **{f"colour {ending}": (ending, COLOUR) for ending in ("png", "bmp", "tiff", "ppm")},
    **{f"16 bits {ending}": (ending, DEEP) for ending in ("png", "tif", "pgm")},
    "12 bits": ("tif", DEEP // 16),
    "int32": ("tif", DEEP.astype(np.int32) * 1000 - 5_000_000),
    "float": ("tif", RNG.normal(size=(6, 5)).astype(np.float32)),
    "float, far off": ("tif", (RNG.normal(size=(6, 5)) + 1e6).astype(np.float32)),
}


@pytest.mark.parametrize("name", KEPT)
def test_images(tmp_path: Path, name: str) -> None:
    ending, array = KEPT[name]
    for i, pixels in enumerate((array, array[::-1])):
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / f"{i}.{ending}")
    data = load(tmp_path)
    assert data.image_shape == array.shape
    assert (values(data).reshape(2, *array.shape) == np.stack([array, array[::-1]])).all()


def image(mode: str) -> Image.Image:
    return Image.fromarray(COLOUR).convert(mode)


def test_modes_that_are_kept(tmp_path: Path) -> None:
    palette, opaque = image("P"), image("RGBA")
    pixels = {
        "1": (Image.fromarray(GREY > 99), np.where(GREY > 99, 255, 0)),
        "P": (palette, np.asarray(palette.convert("RGB"))),
        "RGBA": (opaque, COLOUR),
        "LA": (Image.fromarray(GREY).convert("LA"), GREY),
    }
    for name, (picture, expected) in pixels.items():
        folder = tmp_path / name
        folder.mkdir()
        picture.save(folder / "x.png")
        assert (values(load(folder)).reshape(expected.shape) == expected).all()


def test_exif_orientation_is_followed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    Image.fromarray(COLOUR).save(tmp_path / "x.png", exif=exif)
    assert (values(load(tmp_path)).reshape(5, 6, 3) == np.rot90(COLOUR, -1)).all()


def save(picture: Image.Image, name: str, **options: Any) -> Callable[[Path], None]:
    return lambda folder: picture.save(folder / name, **options)


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


TWO = {"save_all": True, "append_images": [Image.fromarray(COLOUR[::-1].copy())]}
CLEAR = Image.fromarray(np.dstack([COLOUR, GREY]))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (save(CLEAR, "x.png"), ["transparent"]),
        (save(CLEAR, "x.webp"), ["transparent"]),
        (save(CLEAR, "x.tif"), ["transparent"]),
        (save(Image.fromarray(np.dstack([GREY, GREY])), "x.png"), ["transparent"]),
        (save(image("P"), "x.png", transparency=int(np.asarray(image("P"))[0, 0])), ["transparent"]),
        (save(image("CMYK"), "x.jpg"), ["mode CMYK"]),
        (save(image("CMYK"), "x.tif"), ["mode CMYK"]),
        (save(Image.new("LAB", (5, 6)), "x.tif"), ["mode LAB"]),
        *(
            (save(Image.fromarray(COLOUR), f"x.{ending}", **TWO), ["2 frames"])
            for ending in ("png", "gif", "webp", "tif")
        ),
        (write("x.png", png(16, 2, bytes(range(12)))), ["16 bits"]),
        (write("x.png", png(16, 4, bytes(range(8)))), ["16 bits"]),
        (write("x.ppm", b"P6 2 1 65535\n" + bytes(12)), ["16 bits"]),
        (write("x.pgm", b"P5\n# 3 4\n2 1\n4095\n" + bytes(4)), ["4095"]),
        (write("x.pgm", b"P5 2 1 100\n" + bytes(2)), ["100"]),
    ],
    ids=lambda value: "" if callable(value) else value[0],
)
def test_images_refused(tmp_path: Path, make: Callable[[Path], None], words: list[str]) -> None:
    make(tmp_path)
    refused(tmp_path, str(tmp_path), *words)


def test_images_of_different_kinds_are_refused(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    Image.fromarray(DEEP).save(tmp_path / "b.png")
    refused(tmp_path, "b.png has pixels of uint16", "a.png of uint8")


def test_hidden_files_and_folders_are_no_data(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/1.png", ".thumbs/1.png", "cat/.2.png", "__MACOSX/3.png", "empty/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"") if "txt" in name else Image.fromarray(GREY).save(tmp_path / name)
    data = load(tmp_path)
    assert (len(data), data.num_classes, data.classes) == (2, 2, (0, 1))


def test_images_are_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    Image.fromarray(GREY).save(tmp_path / "a/1.png")
    for deep in ("a/b/2.png", "a/b/c/3.png"):
        Image.fromarray(GREY).save(tmp_path / deep)
        refused(tmp_path, "deeper", deep)
        (tmp_path / deep).unlink()
    (tmp_path / "a/dangling.png").symlink_to("nowhere")
    refused(tmp_path, "dangling.png")


@pytest.mark.parametrize(
    "change", [lambda x: x + 1000, lambda x: x * 2, lambda x: x[::-1]], ids=["moved", "scaled", "turned"]
)
def test_a_run_resumes_on_the_data_that_it_began_with(
    tmp_path: Path, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Also where the samples are the same, because another minimum and maximum went to [-1, 1]."""
    np.save(tmp_path / "x.npy", REAL)
    run = fastgan.Trainer(str(tmp_path / "x.npy"), steps=1, runs=str(tmp_path), **SMALL).train(quiet=True)
    np.save(tmp_path / "x.npy", change(REAL))
    with pytest.raises(DataError, match="it has changed"):
        fastgan.Trainer.resume(run, steps=2)
    np.save(tmp_path / "x.npy", REAL)
    assert fastgan.Trainer.resume(run, steps=2).step == 1
