"""Samples written to a file, a part at a time: pictures, arrays and tables."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from fastgan.data.table import Table, rounded
from fastgan.data.units import unscale
from fastgan.training import pictures
from fastgan.training.run_samples import table_of
from fastgan.training.sampling import Drawn

ENDINGS = (".png", ".gif", ".npy", ".npz", ".csv")
# A picture of more bytes is hardly one to look at, and few programs open it.
_MOST_PIXELS = 2**27
_MOST_FRAMES = 2000
_FRAME_CELL, _FRAME_MS = 224, 60


def check_out(out: Path, facts: Mapping[str, Any] | None = None, count: int = 1, frames: int | None = None) -> None:
    """Refuse what cannot be written, before anything is drawn.

    Args:
        out: the file.
        facts: what dataset.json says of the data; None where that is not known yet.
        count: samples in all, those of a walk included.
        frames: of a walk, from one sample to the next; None without one.

    Raises:
        ValueError: out ends in none of what is written, or in one that such data, or so many samples, do not suit.
    """
    kind = out.suffix.lower()
    if kind not in ENDINGS:
        raise ValueError(f"out must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}, not {str(out)!r}")
    if kind == ".gif" and frames is None:
        raise ValueError(f"out must not end in .gif for samples that stand alone, as in {str(out)!r}: give interpolate")
    if facts is None:
        return
    shape = facts["image_shape"]
    if "table" in facts and (kind in (".npy", ".npz", ".gif") or (kind == ".png" and frames is not None)):
        allowed = ".csv or .png" if frames is None else ".csv"
        raise ValueError(f"out must end in {allowed} for a table of words and numbers, not {str(out)!r}")
    if kind == ".csv" and shape:
        raise ValueError(f"out must end in .png, .gif, .npy or .npz for images, not {str(out)!r}")
    if kind == ".gif" and not shape:
        raise ValueError(f"out must end in .png, .npy, .npz or .csv for what is no image, not {str(out)!r}")
    if kind == ".gif" and count > _MOST_FRAMES:
        raise ValueError(f"out must not end in .gif for more than {_MOST_FRAMES:,} frames, not {count:,}")
    if kind == ".png" and shape:
        most = _MOST_PIXELS // pictures.cell_pixels(shape)
        if count > most:
            raise ValueError(f"out must end in .npy or .npz for more than {most:,} such images, not {count:,}")


def write_samples(samples: Tensor, facts: Mapping[str, Any], out: Path) -> None:
    """Write samples as a picture, an array or a table; see `write_parts`.

    Args:
        samples: (count, data), in [-1, 1].
        facts: what `sample_run` says of the data.
        out: the file.
    """
    write_parts(iter([Drawn(samples, None)]), len(samples), facts, out)


def write_parts(
    parts: Iterable[Drawn], count: int, facts: Mapping[str, Any], out: Path, frames: int | None = None
) -> None:
    """Write samples as they are drawn: the file has its name when all of it is written.

    Args:
        parts: count samples in all, (rows, data), in [-1, 1].
        count: so many.
        facts: what `sample_run` says of the data.
        out: a .png; a .gif of a walk through images; a .npy, or the array `samples` of an .npz beside `labels` where
            there are some, of shape (count, h, w[, 3]) or (count, data), float64, in the data's own units; or, of what
            is no image, a .csv as the data's own is written.
        frames: of a walk, from one sample to the next; None without one.

    Raises:
        ValueError: out ends in none of them, or in one that such data cannot be written to.
        OSError: it cannot be written.
    """
    check_out(out, facts, count, frames)
    write = {".png": _write_png, ".gif": _write_gif, ".npy": _write_npy, ".npz": _write_npz, ".csv": _write_csv}
    with whole_file(out) as file:
        write[out.suffix.lower()](file, parts, count, facts, frames)


@contextlib.contextmanager
def whole_file(out: Path) -> Iterator[IO[bytes]]:
    """A file that is written beside `out`, and takes its place when it is whole."""
    target = Path(os.path.realpath(out))
    aside = target.with_name(f".fastgan-{os.getpid()}.writing")
    try:
        with aside.open("wb") as file:
            yield file
        aside.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            aside.unlink()  # half a file, of a full disk
        if isinstance(error, OSError):
            raise OSError(f"out cannot be written: {out}: {error.strerror or error}") from error
        raise


def _units(samples: Tensor, facts: Mapping[str, Any]) -> np.ndarray:
    """Samples in the data's own units, (rows, h, w[, 3]) or (rows, data), float64."""
    scale, offset = (torch.tensor(facts[name], dtype=torch.float64, device="cpu") for name in ("scale", "offset"))
    values: np.ndarray = unscale(samples, scale, offset).reshape(len(samples), *(facts["image_shape"] or [-1])).numpy()
    return values


def _write_array(file: IO[bytes], parts: Iterable[Drawn], count: int, facts: Mapping[str, Any]) -> np.ndarray | None:
    """Write the .npy file of samples, and return their labels (count,), where they have some."""
    labels: np.ndarray | None = None
    done = 0
    for part in parts:
        values = np.ascontiguousarray(_units(part.samples, facts), dtype="<f8")
        if done == 0:
            shape = (count, *values.shape[1:])
            np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
        file.write(values.data)
        if part.labels is not None:
            # Of all at once: small arrays that are kept between large ones that are not keep these from being freed.
            labels = np.empty(count, dtype="<i8") if labels is None else labels
            labels[done : done + len(values)] = part.labels.numpy()
        done += len(values)
    return labels


def _write_npy(file: IO[bytes], parts: Iterable[Drawn], count: int, facts: Mapping[str, Any], *_: Any) -> None:
    _write_array(file, parts, count, facts)


def _write_npz(file: IO[bytes], parts: Iterable[Drawn], count: int, facts: Mapping[str, Any], *_: Any) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(zipfile.ZipInfo("samples.npy"), "w", force_zip64=True) as member:
            labels = _write_array(member, parts, count, facts)
        if labels is not None:
            with archive.open(zipfile.ZipInfo("labels.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, labels, allow_pickle=False)


def _write_csv(file: IO[bytes], parts: Iterable[Drawn], _: int, facts: Mapping[str, Any], *__: Any) -> None:
    """A table as the data's own is written; numbers that have none, as they are."""
    table, layout = table_of(facts), None
    if table is None and "layout" in facts:
        layout = Table.from_json(facts["layout"])
    written = table or layout
    # One encoder for the whole file: an encoding may begin with a mark.
    text = io.TextIOWrapper(file, encoding=written.encoding if written is not None else "utf-8", newline="")
    for i, part in enumerate(parts):
        if table is not None:
            table.write_to(text, table.decode(part.samples), len(part.samples), names=i == 0)
            continue
        values = _units(part.samples, facts)
        if layout is None:
            text.writelines(",".join(map(repr, row)) + "\n" for row in values.tolist())
            continue
        found = [rounded(column, of_column) for column, of_column in zip(layout.columns, values.T, strict=True)]
        layout.write_to(text, list(found), len(values), names=i == 0)
    text.detach()  # which flushes it, and leaves the file open


def _write_png(
    file: IO[bytes], parts: Iterable[Drawn], _: int, facts: Mapping[str, Any], frames: int | None = None
) -> None:
    samples, table, shape = torch.cat([part.samples for part in parts]), table_of(facts), facts["image_shape"]
    if table is not None:
        pictures.save_columns(table, table.decode(samples), file)
    elif shape is not None and frames is not None:
        pictures.image_grid(samples, shape, frames).save(file, format="PNG")
    else:
        pictures.save_samples(samples, shape, file, classes=facts.get("classes", 0))


def _write_gif(file: IO[bytes], parts: Iterable[Drawn], _: int, facts: Mapping[str, Any], *__: Any) -> None:
    images = (
        pictures.image_grid(sample[None], facts["image_shape"], cell=_FRAME_CELL)
        for part in parts
        for sample in part.samples
    )
    first = next(images)
    first.save(file, format="GIF", save_all=True, append_images=itertools.chain(images), duration=_FRAME_MS, loop=0)
