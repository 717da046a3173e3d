"""The IDX files of MNIST and Fashion-MNIST (format: LeCun's page of MNIST), raw or gzipped."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from fastgan.data.dataset import DataError, Dataset, from_array
from fastgan.data.mapped import map_bytes

_UBYTE = 0x08


def find_idx(folder: Path) -> tuple[Path | None, Path | None]:
    """The training images and labels of a folder, each None where there is none."""

    def first(stem: str, kind: str) -> Path | None:
        names = [f"{stem}{joint}{kind}-ubyte{ending}" for ending in ("", ".gz") for joint in "-."]
        return next((folder / name for name in names if (folder / name).is_file()), None)

    return first("train-images", "idx3"), first("train-labels", "idx1")


def load_idx(images: Path, labels: Path | None, name: str) -> Dataset:
    """A Dataset of (N, h, w) 8-bit images and, where a label file is given, (N,) 8-bit labels.

    Raises:
        DataError: a file is truncated, corrupted or of another kind, or the two differ in length.
    """
    pixels = _read(images, "images", dimensions=3)
    classes = None
    if labels is not None:
        classes = _read(labels, "labels", dimensions=1)
        if len(classes) != len(pixels):
            raise DataError(
                f"{labels} holds {len(classes)} labels, but {images.name} holds {len(pixels)} images: they "
                "must be as many"
            )
    return from_array(pixels, classes, name, str(images), str(labels))


def _read(path: Path, what: str, dimensions: int) -> np.ndarray:
    """The array of one IDX file: 0, 0, type, rank; each dimension as a big-endian int32; the values."""
    content = _content(path)
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise DataError(f"{path} ends at byte {len(content)}, within its header of {header} bytes")
    magic = bytes((0, 0, _UBYTE, dimensions))
    if content[:4] != magic:
        raise DataError(
            f"{path} begins with bytes {content[:4].hex(' ')} at offset 0, but an IDX file of 8-bit {what} "
            f"begins with {magic.hex(' ')}"
        )
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    claim = " x ".join(map(str, shape))
    expected = header + int(np.prod([int(n) for n in shape], dtype=object))
    if len(content) != expected:
        fault = "is truncated" if len(content) < expected else "has bytes left over"
        raise DataError(
            f"{path} {fault}: it ends at byte {len(content)}, but its header, which says {claim} {what}, "
            f"needs {expected}"
        )
    if 0 in shape:
        raise DataError(f"{path} holds {claim} {what}, but at least one sample is needed")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _content(path: Path) -> bytes:
    if path.suffix != ".gz":
        return map_bytes(path)
    with path.open("rb") as raw:
        try:
            return gzip.GzipFile(fileobj=raw).read()
        except EOFError as error:
            raise DataError(f"{path} is truncated: its gzip stream breaks off at byte {raw.tell()}") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path} is no intact gzip file: {error}, at or before byte {raw.tell()}") from error
