"""A folder of image files, read with Pillow."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np

from fastgan.dataset import DataError, Dataset, from_array

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
_GREY_MODES = ("1", "L")


def find_images(folder: Path) -> list[Path]:
    """The images of a folder and of its subfolders, in the order of their names."""
    found = (path for depth in ("*", "*/*") for path in folder.glob(depth))
    return sorted(p for p in found if p.suffix.lower() in SUFFIXES and p.is_file() and p.name[0] != ".")


def load_images(folder: Path, files: list[Path], name: str) -> Dataset:
    """A Dataset of 8-bit images; where they lie in subfolders, those are the labels, in order of name.

    Grey where every file is, else RGB.

    Raises:
        DataError: a file is damaged, its size is not the first one's, or images lie in the folder and below
            it.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(f'a folder of images needs Pillow ({error}): pip install "fastgan[train]"') from error
    parents = sorted({path.parent for path in files})
    if len(parents) > 1 and folder in parents:
        beside = next(path for path in files if path.parent == folder)
        raise DataError(
            f"{folder} holds images beside subfolders of images ({beside.name}, {parents[1].name}/): they "
            "must be all in subfolders, whose names are the labels, or in none"
        )
    images = []
    for path in files:
        try:
            content = io.BytesIO(path.read_bytes())
            with Image.open(content) as image:
                image.verify()  # checksums too, which decoding alone does not look at
            with Image.open(content) as image:
                size = image.size
                if images and size != images[0][1].size:
                    break
                images.append((path, image.convert("L" if image.mode in _GREY_MODES else "RGB")))
        except (
            OSError,
            SyntaxError,
            EOFError,
            ValueError,
            struct.error,
            Image.DecompressionBombError,
        ) as error:
            raise DataError(f"{path} is no intact image: {error}") from error
    if len(images) < len(files):
        first, image = images[0]
        raise DataError(
            f"{files[len(images)]} has {size[0]} x {size[1]} pixels, but {first.name} has {image.width} x "
            f"{image.height}: all images must have one size"
        )
    mode = "L" if all(image.mode == "L" for _, image in images) else "RGB"
    array = np.stack([np.asarray(image.convert(mode)) for _, image in images])
    labels = None
    if folder not in parents:
        labels = np.array([parents.index(path.parent) for path in files])
    return from_array(array, labels, name, str(folder), f"{folder}: subfolders")
