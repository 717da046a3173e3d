"""A folder of image files, read with Pillow: with all their levels, or not at all."""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgan.data.dataset import DataError, Dataset, from_array

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
_EIGHT_BITS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr")
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_BITS_PER_SAMPLE, _SAMPLE_FORMAT, _UNSIGNED = 258, 339, 1  # tags of TIFF


def find_images(folder: Path) -> list[Path]:
    """The images of a folder and of its subfolders, in the order of their names; hidden ones are none.

    Raises:
        DataError: images lie deeper than in subfolders.
        OSError: a folder cannot be listed.
    """
    found: list[Path] = []
    for path in _visible(folder):
        if path.is_dir():
            for below in _visible(path):
                if not below.is_dir():
                    found.append(below)
                elif deep := next((p for p in below.rglob("[!.]*") if _is_image(p)), None):
                    raise DataError(
                        f"{folder} holds images deeper than its subfolders, whose names are the labels: {deep}"
                    )
        else:
            found.append(path)
    return sorted(filter(_is_image, found))


def _visible(folder: Path) -> list[Path]:
    # Not by glob, which passes over a folder that may not be read. (__MACOSX is what archives of a Mac hide.)
    return [folder / name for name in os.listdir(folder) if name[0] != "." and name != "__MACOSX"]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def load_images(folder: Path, files: list[Path], name: str) -> Dataset:
    """A Dataset of images; where they lie in subfolders, those are the labels, in order of name.

    8-bit images are grey where every file is, else RGB. Grey images of 16 bits, 32 bits and floats keep their
    levels. All are turned as their EXIF orientation says.

    Raises:
        DataError: a file is damaged, its size or kind is not the first one's, samples cannot hold what it shows
            (transparency, CMYK, colour of more than 8 bits, several frames), or images lie in the folder and below
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
    arrays: list[np.ndarray] = []
    for path in files:
        try:
            # Pillow warns of metadata that it does not understand, which no pixel depends on.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                array = _read(path)
        except (OSError, SyntaxError, EOFError, ValueError, struct.error, Image.DecompressionBombError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path} is no intact image: {error}") from error
        first = arrays[0] if arrays else array
        if array.shape[:2] != first.shape[:2]:
            raise DataError(
                f"{path} has {array.shape[1]} x {array.shape[0]} pixels, but {files[0].name} has {first.shape[1]} x "
                f"{first.shape[0]}: all images must have one size"
            )
        if array.dtype != first.dtype:
            raise DataError(
                f"{path} has pixels of {array.dtype}, but {files[0].name} of {first.dtype}: all images must be of one "
                "kind"
            )
        arrays.append(array)
    if len({array.ndim for array in arrays}) > 1:  # grey among colour
        arrays = [np.stack([array] * 3, axis=-1) if array.ndim == 2 else array for array in arrays]
    labels = None
    if folder not in parents:
        labels = np.array([parents.index(path.parent) for path in files])
    return from_array(np.stack(arrays), labels, name, str(folder), f"{folder}: subfolders")


def _read(path: Path) -> np.ndarray:
    """The pixels of a file, (h, w) or (h, w, 3), each as it is stored."""
    from PIL import Image, ImageOps

    content = path.read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        image.verify()  # checksums too, which decoding alone does not look at
    with Image.open(io.BytesIO(content)) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise DataError(f"{path} holds {frames} frames, but a sample is one image")
        if image.mode not in _EIGHT_BITS + _DEEP:
            raise DataError(f"{path} has pixels of mode {image.mode}; convert it to grey or RGB first")
        _check_depth(path, image, content)
        upright = ImageOps.exif_transpose(image)
    if upright.mode in _DEEP:
        array = np.asarray(upright)
        return array.astype(array.dtype.newbyteorder("="))
    if upright.has_transparency_data and _lowest(upright.convert("RGBA").getchannel("A")) < 255:
        raise DataError(f"{path} has transparent pixels, which a sample cannot hold; lay it on a background first")
    return np.asarray(upright.convert("L" if upright.mode in ("1", "L", "LA", "La") else "RGB"))


def _lowest(band: Image) -> float:
    """The least value of an image of one band."""
    extrema: Any = band.getextrema()
    return float(extrema[0])


def _check_depth(path: Path, image: Image, content: bytes) -> None:
    """DataError where Pillow would give a file's pixels in other levels than it holds."""
    bits = 8
    if image.format == "PNG":
        bits = content[24]  # of IHDR, which comes first
    elif image.format == "TIFF":
        tags: Any = image.tag_v2  # type: ignore[attr-defined]  # of a TIFF
        bits = max(np.atleast_1d(tags.get(_BITS_PER_SAMPLE, 1)))
        formats = np.atleast_1d(tags.get(_SAMPLE_FORMAT, _UNSIGNED))
        if image.mode == "I" and bits == 32 and _UNSIGNED in formats and _lowest(image) < 0:
            raise DataError(f"{path} holds unsigned pixels of 32 bits beyond 2^31, which Pillow cannot read")
    elif image.format == "PPM" and (header := re.match(rb"P[2356](?:\s+|#[^\n]*\n)+\d+", content)):
        numbers = re.findall(rb"\d+", re.sub(rb"#[^\n]*", b"", content[2 : header.end() + 200]))
        top = int(numbers[2])
        # Pillow stretches other ranges to 8 or 16 bits.
        if top not in (255, 65535):
            raise DataError(f"{path} has a maximum of {top}, but only 255 and, of grey, 65535 can be read as they are")
        bits = 16 if top > 255 else 8
    if bits > 8 and image.mode in _EIGHT_BITS:
        raise DataError(
            f"{path} has colour or transparency of {bits} bits, of which Pillow reads 8; save it with 8 bits, or as "
            "an .npy array"
        )
