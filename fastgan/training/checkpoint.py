"""Checkpoints: a folder of safetensors and one JSON file, written aside, synced and renamed; no pickle.

Whenever a process is killed, each step_N folder that is there is whole.

checkpoints/step_1000/
    generator.safetensors       parameters and buffers by state_dict key; so are discriminator and ema
    optimizers.safetensors      the tensors of both optimizers' state
    random.safetensors          states of the random generators
    checkpoint.json             format version, step, options of the optimizers, and of each file every tensor's shape
                                and dtype and the SHA-256
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

FORMAT_VERSION = 1
MANIFEST = "checkpoint.json"
_NAME = re.compile(r"step_(\d+)")
# What a checkpoint is called while another of the same step takes its place.
_REPLACED = re.compile(r"\.step_(\d+)\.replaced")

Tensors = dict[str, Tensor]


class CheckpointError(RuntimeError):
    """A checkpoint or run folder cannot be used; names the file or tensor and what was expected."""


def save_checkpoint(folder: Path, step: int, groups: Mapping[str, Tensors], facts: Mapping[str, Any]) -> Path:
    """Write folder/step_N whole or not at all.

    Args:
        folder: the run's checkpoints folder; made where it does not exist.
        step: N.
        groups: file stem to the tensors that it holds, by name.
        facts: whatever else is to be kept, as JSON has it.

    Returns:
        The path of the checkpoint.
    """
    folder.mkdir(exist_ok=True)
    final, aside = folder / f"step_{step}", folder / f".step_{step}.writing"
    _remove(aside)
    try:
        _write_aside(aside, step, groups, facts)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)  # a full disk gets its space back
        raise
    if final.exists():
        old = folder / f".step_{step}.replaced"
        _remove(old)
        final.rename(old)  # which `complete_checkpoints` knows, until the new one has its name
        aside.rename(final)
        sync(folder)
        _remove(old)
    else:
        aside.rename(final)
    sync(folder)
    return final


def load_checkpoint(path: Path, expected: Mapping[str, Tensors]) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """Read and verify a checkpoint; nothing is changed.

    Args:
        path: a step_N folder.
        expected: file stem to the tensors that it must hold, by name, in shape and dtype. Files of other
            stems are read too, against the manifest alone.

    Returns:
        The tensors of every file on the CPU, and the manifest's facts with `step`.

    Raises:
        CheckpointError: a file is missing, truncated, altered, of another version, or does not fit what is
            expected.
    """
    manifest = _read_manifest(path)
    groups: dict[str, Tensors] = {}
    for stem in [*manifest["files"], *(stem for stem in expected if stem not in manifest["files"])]:
        file = path / f"{stem}.safetensors"
        if stem not in manifest["files"]:
            raise CheckpointError(f"{path / MANIFEST} lists no {file.name}, but this run needs one")
        entry = manifest["files"][stem]
        try:
            content = file.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
        try:
            tensors = load(content)
        except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"{file} is truncated or damaged: it has {len(content)} bytes where {entry['bytes']} were "
                f"written ({error})"
            ) from error
        listed = entry["tensors"]
        _compare(file, {name: _signature(value) for name, value in tensors.items()}, listed, "was written")
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise CheckpointError(
                f"{file} is damaged: its SHA-256 is not {entry['sha256']}, the one it was written with"
            )
        if stem in expected:
            wanted = {name: _signature(value) for name, value in expected[stem].items()}
            _compare(file, listed, wanted, "is needed by this run's configuration")
        groups[stem] = tensors
    return groups, {"step": manifest["step"], **manifest["facts"]}


def complete_checkpoints(folder: Path) -> list[Path]:
    """The step_N folders, oldest first. One whose writing was cut short has another name."""
    if not folder.is_dir():
        return []
    paths = list(folder.iterdir())
    steps = {int(match[1]): path for path in paths if (match := _REPLACED.fullmatch(path.name))}
    steps |= {int(match[1]): path for path in paths if (match := _NAME.fullmatch(path.name))}
    return [steps[step] for step in sorted(steps)]


def best_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint whose `distance` is the smallest, the newest of such; None where none has one."""
    found = [(distance, path) for path in complete_checkpoints(folder) if (distance := _distance(path)) is not None]
    return min(reversed(found), key=lambda each: each[0])[1] if found else None


def prune_checkpoints(folder: Path, keep: int, best: bool = False) -> None:
    """Remove all but the newest `keep` (at least one) checkpoints, and what died half-written.

    Args:
        folder: the run's checkpoints folder.
        keep: so many.
        best: whether the best one is kept too.
    """
    found = complete_checkpoints(folder)
    kept = {*found[-max(keep, 1) :], best_checkpoint(folder) if best else None}
    for path in found:
        if path in kept:
            continue
        # Renamed first: a checkpoint that is half removed must not pass for one.
        doomed = path.with_name(f".{path.name.strip('.')}.removing")
        _remove(doomed)
        path.rename(doomed)
    for path in folder.glob(".step_*"):
        if path not in kept:
            _remove(path)


def read_facts(path: Path) -> dict[str, Any]:
    """What a checkpoint holds beside tensors: the facts that it was saved with, `step`, and `digest`, its manifest's.

    Raises:
        CheckpointError: the manifest is missing, damaged or of another version.
    """
    manifest = _read_manifest(path)
    return {**manifest["facts"], "step": manifest["step"], "digest": _digest(manifest)}


def _distance(path: Path) -> float | None:
    try:
        distance: float | None = read_facts(path).get("distance")
    except CheckpointError:
        return None
    return distance


def flatten(value: Any, prefix: str, tensors: Tensors) -> Any:
    """Move the tensors of nested dicts, lists and tuples into `tensors`; return the rest as JSON has it."""
    if isinstance(value, Tensor):
        tensors[prefix] = value
        return {"tensor": prefix}
    if isinstance(value, dict):
        return {"items": [[key, flatten(item, f"{prefix}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [flatten(item, f"{prefix}.{i}", tensors) for i, item in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{prefix} is a {type(value).__name__}, which a checkpoint without pickle cannot hold")


def unflatten(value: Any, tensors: Tensors) -> Any:
    """The inverse of `flatten`."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "items":
        return {key: unflatten(item, tensors) for key, item in content}
    items = [unflatten(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def _write_aside(aside: Path, step: int, groups: Mapping[str, Tensors], facts: Mapping[str, Any]) -> None:
    aside.mkdir()
    files = {}
    for stem, tensors in groups.items():
        # Cloned where they share memory, as tied weights do: safetensors refuses to store them twice unasked.
        content = save({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()})
        _write(aside / f"{stem}.safetensors", content)
        files[stem] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
            "tensors": {name: _signature(value) for name, value in tensors.items()},
        }
    manifest = {"format_version": FORMAT_VERSION, "step": step, "files": files, "facts": dict(facts)}
    manifest["sha256"] = _digest(manifest)
    _write(aside / MANIFEST, json.dumps(manifest, indent=1).encode())
    sync(aside)


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{file} is truncated or damaged: {error}") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{file} has format version {version!r}, but this fastgan reads version {FORMAT_VERSION}")
    digest = manifest.pop("sha256", None)
    if digest != _digest(manifest):
        raise CheckpointError(
            f"{file} is damaged: its content does not give the SHA-256 {digest!r} that it was written with"
        )
    return manifest


def _compare(file: Path, found: dict[str, Any], wanted: dict[str, Any], why: str) -> None:
    """CheckpointError at the first tensor whose presence, shape or dtype differs."""
    for name, (shape, dtype) in wanted.items():
        if name not in found:
            raise CheckpointError(f"{file} lacks the tensor {name}, which {why}, {dtype} of shape {tuple(shape)}")
        if found[name] != [shape, dtype]:
            raise CheckpointError(
                f"{file}: the tensor {name} is {found[name][1]} of shape {tuple(found[name][0])}, but "
                f"{dtype} of shape {tuple(shape)} {why}"
            )
    for name in found:
        if name not in wanted:
            raise CheckpointError(f"{file} holds a tensor {name} beyond what {why}")


def _signature(value: Tensor) -> list[Any]:
    return [list(value.shape), str(value.dtype).removeprefix("torch.")]


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _write(path: Path, content: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not name the file
        raise


def sync(folder: Path) -> None:
    """Make a folder's entries durable (POSIX: the folder itself must be synced for that)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
