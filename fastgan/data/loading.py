"""`fastgan.data.load`: real data and toy mixtures, from their names or from files, as one kind of Dataset."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from fastgan import checks
from fastgan.data.dataset import DataError, Dataset
from fastgan.data.idx import find_idx, load_idx
from fastgan.data.images import find_images, load_images
from fastgan.data.table import Table
from fastgan.data.tables import load_csv, load_npy, load_npz
from fastgan.data.toys import digits, grid25, ring8

BUILT_IN: dict[str, Callable[[int], Dataset]] = {
    "digits": lambda seed: digits(),
    "ring8": ring8,
    "grid25": grid25,
}
_READERS: dict[str, Callable[[Path, str], Dataset]] = {".npy": load_npy, ".npz": load_npz}


def load(
    data: str | os.PathLike[str], seed: int = 0, *, columns: str | None = None, known: Table | None = None
) -> Dataset:
    """Load a data set, scaled to [-1, 1]; a .npy or raw IDX file of 256 MB or more is mapped into memory instead.

    Args:
        data: `digits`, `ring8` or `grid25`; or the path of
            a folder of IDX files (MNIST, Fashion-MNIST: train-images-idx3-ubyte and, optionally,
            train-labels-idx1-ubyte; raw or .gz; `train-images.idx3-ubyte` is found too);
            a .npy array: (N, data), (N, h, w) or (N, h, w, 1 or 3);
            an .npz with such an array named samples, images, data, x_train, X or x (or its only array), and
            labels named labels, y_train or y;
            a .csv table of numbers, words, dates and missing values, with or without a line of column names; of
            numbers alone, a column named `label` holds labels;
            a folder of images of one size, in subfolders named by class or in none; hidden ones are left out.
        seed: of the points of ring8 and grid25, and of what is fitted to a table.
        columns: of a .csv table, `name=kind,...` where a column is not to be told by its cells: `discrete`,
            `continuous`, `integer`, `date`, `date:FORMAT` (as `datetime.strptime` has it) or `drop`; or `plain` for a
            table of numbers that are scaled column by column, whatever they are.
        known: the Table of an earlier run, for a .csv file with its columns: nothing is told or fitted anew.

    Returns:
        The Dataset.

    Raises:
        TypeError, ValueError: the seed is no integer or negative, or columns is no string.
        DataError: the data is missing, damaged, not finite or not of a usable shape; one sentence says where.
    """
    checks.integer("seed", seed, 0)
    checks.number("seed", seed, 0, 2**63 - 1)
    if columns is not None and not isinstance(columns, str):
        raise TypeError(f"columns must be a string, not {type(columns).__name__} {columns!r}")
    text = os.fsdecode(data)
    if columns and not text.lower().endswith(".csv"):
        raise DataError(f"columns must be given with a .csv file alone, not with {text!r}")
    if text in BUILT_IN:
        return BUILT_IN[text](seed)
    path = Path(text)
    try:
        if not text or not path.exists():
            raise DataError(f"data must be {', '.join(BUILT_IN)} or an existing file or folder, not {text!r}")
        name = re.sub(r"[^A-Za-z0-9_.]+", "-", path.resolve().stem).strip("-.") or "data"
        if path.is_dir():
            return _load_folder(path, name)
        if path.suffix.lower() == ".csv":
            return load_csv(path, name, columns or "", seed, known)
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            raise DataError(f"{path} must be a folder or a file ending in {', '.join(_READERS)}, .csv")
        return reader(path, name)
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise DataError(f"{path} does not fit into memory") from error


def _load_folder(path: Path, name: str) -> Dataset:
    images, labels = find_idx(path)
    if images is not None:
        return load_idx(images, labels, name)
    if labels is not None:
        raise DataError(f"{path} holds {labels.name} but no train-images-idx3-ubyte, raw or .gz, to go with it")
    files = find_images(path)
    if files:
        return load_images(path, files, name)
    raise DataError(f"{path} holds neither train-images-idx3-ubyte, raw or .gz, nor any image")
