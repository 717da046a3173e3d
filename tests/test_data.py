"""The data loaders: what they read, and the sentence with which they refuse what is damaged."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastgan.data import DataError, Dataset, load

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist installs


def idx(values: np.ndarray) -> bytes:
    """An IDX file of 8-bit values."""
    return bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 5, 4), dtype=np.uint8)


@pytest.fixture
def labels() -> np.ndarray:
    return (np.arange(12) % 3).astype(np.uint8)


@pytest.fixture
def idx_folder(tmp_path: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(images))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def refused(data: object, *words: str) -> None:
    """The data is refused with one line that holds all the words."""
    with pytest.raises(DataError) as caught:
        load(data)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


# The built-in sets.


def test_examples() -> None:
    data = load("digits")
    real = data.examples(30, seed=1, by_class=True)
    for row, picked in enumerate(real):
        assert row % 10 in data.labels[(data.samples == picked).all(dim=1)]
    assert data.examples(5000, seed=1, by_class=False).shape == (1797, 64)
    assert not torch.equal(data.examples(9, seed=1, by_class=False), data.examples(9, seed=2, by_class=False))
    few = Dataset("few", torch.arange(3.0)[:, None], torch.tensor([1, 2, 2]), 3)
    assert sorted(few.examples(4, seed=0, by_class=True)[:, 0].tolist()) in ([0, 0, 1, 2],)


def test_digits() -> None:
    data = load("digits")
    assert data.samples.shape == (1797, 64)
    assert data.samples.dtype == torch.float32
    assert data.image_shape == (8, 8)
    assert (data.samples.min(), data.samples.max()) == (-1, 1)
    assert data.num_classes == 10
    assert data.unscale(data.samples).max() == 16


@pytest.mark.parametrize(("name", "modes"), [("ring8", 8), ("grid25", 25)])
def test_mixtures(name: str, modes: int) -> None:
    data = load(name, seed=3)
    assert data.num_classes == modes
    distance = (data.samples - data.modes[data.labels]).norm(dim=1)
    assert distance.max() < 6 * data.mode_std
    assert distance.square().mean().sqrt().item() == pytest.approx(2**0.5 * data.mode_std, rel=0.05)
    assert torch.equal(load(name, seed=3).samples, data.samples)
    assert not torch.equal(load(name, seed=4).samples, data.samples)


def test_unknown_name(tmp_path: Path) -> None:
    refused("digitz", "digits, ring8, grid25", "'digitz'")
    refused("", "existing file")
    (tmp_path / "x.mat").write_bytes(b"0")
    refused(tmp_path / "x.mat", "x.mat", ".npy, .npz, .csv")
    with pytest.raises(ValueError, match="seed must be at least 0, not -1"):
        load("ring8", seed=-1)


# IDX.


@pytest.mark.parametrize("joint", ["-", "."])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_names(tmp_path: Path, images: np.ndarray, labels: np.ndarray, joint: str, packed: bool) -> None:
    for name, values in (
        (f"train-images{joint}idx3-ubyte", images),
        (f"train-labels{joint}idx1-ubyte", labels),
    ):
        content = idx(values)
        path = tmp_path / (name + (".gz" if packed else ""))
        path.write_bytes(gzip.compress(content) if packed else content)
    data = load(tmp_path)
    assert data.image_shape == (5, 4)
    assert data.num_classes == 3
    assert torch.equal(data.unscale(data.samples).round().byte().reshape(12, 5, 4), torch.from_numpy(images))
    assert torch.equal(data.labels, torch.from_numpy(labels).long())


def test_idx_without_labels(idx_folder: Path) -> None:
    (idx_folder / "train-labels-idx1-ubyte").unlink()
    assert load(idx_folder).labels is None
    (idx_folder / "train-labels-idx1-ubyte").write_bytes(b"")
    (idx_folder / "train-images-idx3-ubyte").unlink()
    refused(idx_folder, "train-images-idx3-ubyte")


def test_idx_damage(idx_folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    path = idx_folder / "train-images-idx3-ubyte"
    good = idx(images)
    for content, words in (
        (good[:-7], ["truncated", "byte 249", "needs 256"]),
        (good + b"12", ["left over", "byte 258", "needs 256"]),
        (good[:9], ["ends at byte 9", "header of 16"]),
        (b"", ["ends at byte 0"]),
        (bytes((0, 0, 13, 3)) + good[4:], ["offset 0", "00 00 0d 03", "00 00 08 03"]),
        (good[:4] + b"\xff" * 4 + good[8:], ["truncated", "4294967295"]),
        (bytes((0, 0, 8, 3)) + bytes(12), ["at least one sample"]),
    ):
        path.write_bytes(content)
        refused(idx_folder, str(path), *words)
    path.write_bytes(good)
    other = idx_folder / "train-labels-idx1-ubyte"
    other.write_bytes(idx(labels[:-1]))
    refused(idx_folder, str(other), "11 labels", "12 images")
    stray = labels.copy()
    stray[4] = 200
    other.write_bytes(idx(stray))
    refused(idx_folder, str(other), "label 200 at index 4", "out of range")


def test_gzip_damage(idx_folder: Path, images: np.ndarray) -> None:
    (idx_folder / "train-images-idx3-ubyte").unlink()
    path = idx_folder / "train-images-idx3-ubyte.gz"
    good = gzip.compress(idx(images))
    path.write_bytes(good[:-20])
    refused(idx_folder, str(path), "truncated", f"byte {len(good) - 20}")
    path.write_bytes(good[:60] + bytes(b ^ 0x55 for b in good[60:90]) + good[90:])
    refused(idx_folder, str(path), "no intact gzip")
    path.write_bytes(b"plainly not gzip")
    refused(idx_folder, str(path), "no intact gzip")


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist() -> None:
    data = load(FASHION_MNIST)
    assert data.samples.shape == (60_000, 784)
    assert data.labels.bincount().tolist() == [6000] * 10


# Arrays.


def test_npy_shapes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "a b.npy"
    table = rng.normal(size=(9, 3)) * [1, 10, 100] + 5
    for array, shape in (
        (table, None),
        (table.astype(np.float32), None),
        (np.asfortranarray(table.astype(">f8")), None),
        (rng.integers(0, 9, (9, 2)), None),
        (rng.integers(0, 256, (9, 4, 5), dtype=np.uint8), (4, 5)),
        (rng.random((9, 4, 5, 1)), (4, 5)),
        (rng.random((9, 4, 5, 3)).astype(np.float16), (4, 5, 3)),
    ):
        np.save(path, array)
        data = load(path)
        assert data.image_shape == shape
        assert data.name == "a-b"
        assert data.samples.abs().max() <= 1 + 1e-6
        back = data.unscale(data.samples).numpy().reshape(array.shape)
        assert np.array_equal(back, array.astype(np.float64))


def test_constant_column(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[1.0, 7.0], [2.0, 7.0]]))
    data = load(tmp_path / "x.npy")
    assert data.samples.tolist() == [[-1, 0], [1, 0]]
    assert data.unscale(data.samples).tolist() == [[1, 7], [2, 7]]


def test_npy_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    bad = np.ones((4, 3))
    bad[2, 1] = np.nan
    image = np.ones((4, 2, 2), np.float32)
    image[3, 0, 1] = np.inf
    for array, words in (
        (bad, ["nan", "row 2, column 1", "finite"]),
        (image, ["inf", "index (3, 0, 1)"]),
        (np.full((2, 2), 1e300), ["1e+300", "row 0, column 0", "float32"]),
        (np.ones((2, 2), complex), ["complex128"]),
        (np.array([["a"]]), ["<U1"]),
        (np.ones(4), ["(4,)", "(N, data)"]),
        (np.ones((4, 3, 2, 2)), ["(4, 3, 2, 2)"]),
        (np.ones((0, 3)), ["at least one sample"]),
        (np.ones((3, 0)), ["at least one sample"]),
    ):
        np.save(path, array)
        refused(path, str(path), *words)
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    refused(path, str(path), "allow_pickle=False")
    np.save(path, np.ones((4, 3)))
    good = path.read_bytes()
    path.write_bytes(good[:-5])
    refused(path, str(path), "no intact .npy", f"byte {len(good) - 5}")
    path.write_bytes(good + b"x")
    refused(path, str(path), "left over")
    path.write_bytes(b"\x93NUMPY\x01\x00" + good[8:30])
    refused(path, str(path), "no intact .npy")
    path.write_bytes(b"hello")
    refused(path, str(path), "no intact .npy")
    path.write_bytes(b"")
    refused(path, str(path), "no intact .npy")


def test_npz(tmp_path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    data = load(path)
    assert data.num_classes == 3
    assert data.image_shape == (5, 4)
    np.savez_compressed(path, anything=images)
    assert load(path).labels is None
    np.savez(path, samples=images, labels=labels.astype(np.float64) + 1)
    assert load(path).num_classes == 4


def test_npz_refused(tmp_path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, one=images, two=images)
    refused(path, str(path), "one, two", "samples")
    for wrong, words in (
        (labels[:-1], ["'labels'", "(11,)", "12 samples"]),
        (labels.astype(float) + 0.5, ["label 0.5 at index 0"]),
        (np.where(np.arange(12) == 5, np.nan, labels), ["label nan at index 5"]),
        (labels.astype(int) - 1, ["label -1 at index 0"]),
        (labels.astype(int) + 2, ["label 2 at index 0", "no sample has label 0"]),
        (labels.astype(str), ["dtype <U"]),
        (np.eye(12), ["(12, 12)"]),
    ):
        np.savez(path, samples=images, labels=wrong)
        refused(path, str(path), *words)
    np.savez(path, samples=images.astype(object), labels=labels)
    refused(path, str(path), "'samples'", "allow_pickle=False")
    np.savez(path, samples=images, labels=labels)
    good = path.read_bytes()
    path.write_bytes(good[:-30])
    refused(path, str(path), "no intact .npz")
    path.write_bytes(good[:300] + bytes(b ^ 0x55 for b in good[300:310]) + good[310:])
    refused(path, str(path), "CRC")
    path.write_bytes(b"")
    refused(path, str(path), "no intact .npz")


# CSV.


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("1,2\n3,4\n\n5,6\n")
    data = load(path)
    assert data.unscale(data.samples).tolist() == [[1, 2], [3, 4], [5, 6]]
    assert data.labels is None
    path.write_bytes(b'\xef\xbb\xbf"a,b", label ,c\r\n1,0,2\r\n3,1,4\r\n')
    data = load(path)
    assert data.unscale(data.samples).tolist() == [[1, 2], [3, 4]]
    assert data.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["empty"]),
        ("a,b\n", ["no rows"]),
        ("a,b\n1,2\n3\n", ["line 3", "1 columns", "2 are needed"]),
        ("1,2\n3,x4\n", ["line 2, column 2", "'x4'"]),
        ("1,inf\n", ["inf", "row 0, column 1"]),
        ("a,label\n1,0\n2,-1\n", ["label -1.0 at index 1"]),
        ("a,label\n1,0\n2,0.5\n", ["label 0.5 at index 1"]),
        ("a,label\n1,0\n2,7\n", ["label 7 at index 1", "out of range"]),
        ("a,b,c\n1,2\n", ["names 3 columns", "have 2"]),
        ("label,label\n1,2\n", ["2 columns named label"]),
        ("label\n0\n1\n", ["at least one sample"]),
    ],
)
def test_csv_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text)
    refused(path, str(path), *words)


def test_csv_not_text(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"1,2\n3,\0\n")
    refused(tmp_path / "x.csv", "x.csv", "no text", "character 6", "0x00")
    (tmp_path / "x.csv").write_bytes(b"1,2\n3,\xff\n")
    refused(tmp_path / "x.csv", "x.csv", "line 2, column 2", "'ÿ'")


# Folders of images.


def test_image_folder(tmp_path: Path, images: np.ndarray) -> None:
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i:02d}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    data = load(tmp_path)
    assert data.image_shape == (5, 4)
    assert data.labels is None
    assert torch.equal(data.unscale(data.samples).round().byte().reshape(12, 5, 4), torch.from_numpy(images))
    colour = np.stack([images[0]] * 3, axis=-1)
    Image.fromarray(colour).save(tmp_path / "99.png")
    assert load(tmp_path).image_shape == (5, 4, 3)


def test_image_subfolders(tmp_path: Path, images: np.ndarray) -> None:
    for i, image in enumerate(images):
        folder = tmp_path / ("cat", "dog", "emu")[i % 3]
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    data = load(tmp_path)
    assert data.num_classes == 3
    assert data.labels.bincount().tolist() == [4, 4, 4]
    Image.fromarray(images[0]).save(tmp_path / "beside.png")
    refused(tmp_path, "beside.png", "cat/")


def test_image_folder_refused(tmp_path: Path, images: np.ndarray) -> None:
    refused(tmp_path, str(tmp_path), "neither")
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    Image.fromarray(images[0].T.copy()).save(tmp_path / "b.png")
    refused(tmp_path, "b.png", "5 x 4", "a.png", "4 x 5")
    path = tmp_path / "b.png"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 4), dtype=np.uint8))
    noise.save(path)
    good = path.read_bytes()
    for content in (good[:-20], good[:40], b"", b"hello", good[:45] + b"\0\0\0\0" + good[49:]):
        path.write_bytes(content)
        refused(tmp_path, str(path), "no intact image")


# By hand.


def test_dataset_by_hand() -> None:
    samples = torch.zeros(4, 3)
    Dataset("x", samples, torch.arange(4), 4)
    for wrong, words in (
        ({"samples": torch.zeros(4)}, "shape"),
        ({"samples": torch.full((4, 3), float("nan"))}, "finite"),
        ({"labels": torch.arange(4)}, "num_classes"),
        ({"labels": torch.arange(4), "num_classes": 3}, r"\[0, 3\)"),
        ({"labels": torch.arange(3), "num_classes": 3}, r"\(4,\)"),
        ({"image_shape": (2, 2)}, "3 values"),
        ({"name": "a/b"}, "a/b"),
    ):
        with pytest.raises(ValueError, match=words):
            Dataset(**{"name": "x", "samples": samples, **wrong})
    with pytest.raises(TypeError, match="float32"):
        Dataset("x", samples.double())
