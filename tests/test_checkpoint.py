"""Checkpoints: written whole, verified whole, and never half used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastgan.training import checkpoint
from fastgan.training.checkpoint import (
    CheckpointError,
    complete_checkpoints,
    flatten,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    unflatten,
)

Groups = dict[str, dict[str, Tensor]]


@pytest.fixture
def groups() -> Groups:
    torch.manual_seed(0)
    return {
        "generator": {"0.weight": torch.randn(3, 2), "0.bias": torch.randn(3)},
        "random": {"cpu": torch.get_rng_state(), "empty": torch.zeros(0)},
    }


@pytest.fixture
def saved(tmp_path: Path, groups: Groups) -> Path:
    return save_checkpoint(tmp_path / "checkpoints", 7, groups, {"note": [1, 2.5, None]})


def test_round_trip(saved: Path, groups: Groups) -> None:
    loaded, facts = load_checkpoint(saved, {"generator": groups["generator"]})
    assert facts == {"step": 7, "note": [1, 2.5, None]}
    for stem, tensors in groups.items():
        assert loaded[stem].keys() == tensors.keys()
        for name, value in tensors.items():
            assert torch.equal(loaded[stem][name], value)
            assert loaded[stem][name].dtype == value.dtype
    # Plain safetensors, which any tool can read.
    assert torch.equal(load_file(saved / "generator.safetensors")["0.bias"], groups["generator"]["0.bias"])


def test_shared_and_strided_tensors(tmp_path: Path) -> None:
    value = torch.arange(6.0).reshape(2, 3)
    group = {"a": value, "b": value, "c": value.T, "d": value[:, 1]}
    loaded, _ = load_checkpoint(save_checkpoint(tmp_path / "c", 0, {"x": group}, {}), {"x": group})
    for name, expected in group.items():
        assert torch.equal(loaded["x"][name], expected)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("generator.safetensors", cut, ["generator.safetensors", "truncated", "bytes where"]),
        ("generator.safetensors", flip, ["generator.safetensors", "SHA-256"]),
        ("generator.safetensors", Path.unlink, ["generator.safetensors", "No such file"]),
        ("generator.safetensors", lambda path: path.write_bytes(b""), ["truncated", "0 bytes"]),
        ("random.safetensors", cut, ["random.safetensors", "truncated"]),
        ("checkpoint.json", cut, ["checkpoint.json", "truncated or damaged"]),
        ("checkpoint.json", Path.unlink, ["checkpoint.json", "No such file"]),
    ],
)
def test_damage(saved: Path, groups: Groups, name: str, damage: Callable[[Path], object], words: list[str]) -> None:
    damage(saved / name)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(saved, groups)
    for word in words:
        assert word in str(caught.value)


def test_altered_manifest(saved: Path, groups: Groups) -> None:
    manifest = json.loads((saved / "checkpoint.json").read_text())
    (saved / "checkpoint.json").write_text(json.dumps({**manifest, "step": 8}))
    with pytest.raises(CheckpointError, match=r"checkpoint.json is damaged: .* SHA-256"):
        load_checkpoint(saved, groups)
    for version in (2, None, "1"):
        (saved / "checkpoint.json").write_text(json.dumps({**manifest, "format_version": version}))
        with pytest.raises(CheckpointError, match=f"format version {version!r}, but this fastgan reads version 1"):
            load_checkpoint(saved, groups)
    (saved / "checkpoint.json").write_text("[]")
    with pytest.raises(CheckpointError, match="format version None"):
        load_checkpoint(saved, groups)


def test_replaced_tensors(saved: Path, groups: Groups) -> None:
    """A file that was put in another's place, intact in itself."""
    path = saved / "generator.safetensors"
    weight, bias = groups["generator"]["0.weight"], groups["generator"]["0.bias"]
    for tensors, sentence in (
        (
            {"0.weight": weight.T.contiguous(), "0.bias": bias},
            r"0.weight is float32 of shape \(2, 3\), but .*\(3, 2\)",
        ),
        ({"0.weight": weight.double(), "0.bias": bias}, "0.weight is float64 of shape .*, but float32"),
        ({"0.weight": weight}, "lacks the tensor 0.bias"),
        ({**groups["generator"], "1.bias": bias + 1}, "holds a tensor 1.bias"),
    ):
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match=sentence):
            load_checkpoint(saved, groups)


def test_other_network(saved: Path, groups: Groups) -> None:
    """An intact checkpoint, of a network of another shape than the one that is to take it."""
    needed = {"generator": {"0.weight": torch.zeros(4, 2), "0.bias": torch.zeros(4)}}
    with pytest.raises(CheckpointError, match=r"0.weight is float32 of shape \(3, 2\), but float32 of shape \(4, 2\)"):
        load_checkpoint(saved, needed)
    with pytest.raises(CheckpointError, match=r"lists no ema.safetensors, but this run needs one"):
        load_checkpoint(saved, {"ema": groups["generator"]})


def test_an_interrupted_write_is_no_checkpoint(
    tmp_path: Path, saved: Path, groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved.parent
    monkeypatch.setattr(checkpoint, "_digest", lambda manifest: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_checkpoint(folder, 8, groups, {})
    monkeypatch.undo()
    assert complete_checkpoints(folder) == [saved]
    assert len(list(folder.iterdir())) == 2
    save_checkpoint(folder, 8, groups, {})
    assert [path.name for path in complete_checkpoints(folder)] == ["step_7", "step_8"]


def test_writing_a_step_again_replaces_it(saved: Path, groups: Groups) -> None:
    save_checkpoint(saved.parent, 7, groups, {"note": "new"})
    assert load_checkpoint(saved, groups)[1]["note"] == "new"
    assert [path.name for path in saved.parent.iterdir()] == ["step_7"]


def test_prune(tmp_path: Path, groups: Groups) -> None:
    for step in (2, 9, 10, 100):
        save_checkpoint(tmp_path, step, groups, {})
    (tmp_path / ".step_101.writing").mkdir()
    (tmp_path / "notes").mkdir()
    prune_checkpoints(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "step_10", "step_100"]
    prune_checkpoints(tmp_path, 0)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step_100"]


def test_flatten() -> None:
    tree = {"state": {0: {"step": torch.tensor(3.0), "x": None}}, "betas": (0.5, 0.9), "list": [True, "a", 1]}
    tensors: dict[str, Tensor] = {}
    plain = json.loads(json.dumps(flatten(tree, "g", tensors)))
    assert list(tensors) == ["g.state.0.step"]
    assert unflatten(plain, tensors) == tree
    with pytest.raises(TypeError, match=r"g\.a is a set"):
        flatten({"a": {1}}, "g", {})
