"""fastgan.device_cache: files that a crash, another process, a full disk or another device cannot spoil."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fastgan import device_cache

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fastgan"


def file_of(kind: str = "choices") -> Path:
    (file,) = device_cache.folder().glob(f"{kind}-*.json")
    return file


def process(code: str) -> subprocess.Popen[bytes]:
    # The same module, of which the processor's facts are told apart by the threads: as many as here.
    start = f"import torch; torch.set_num_threads({torch.get_num_threads()}); from fastgan import device_cache as d\n"
    return subprocess.Popen([sys.executable, "-c", start + code], cwd=ROOT, stderr=subprocess.PIPE)


def test_entries_are_kept_and_merged(cache: Path) -> None:
    assert device_cache.load("choices", CPU) == {}
    assert not cache.exists()
    device_cache.merge("choices", CPU, {"a": 1, "b": {"c": [1.5, None, "x"]}})
    device_cache.merge("choices", CPU, {"a": 2, "d": True})
    assert device_cache.load("choices", CPU) == {"a": 2, "b": {"c": [1.5, None, "x"]}, "d": True}
    assert device_cache.load("verification", CPU) == {}
    device_cache.merge("verification", CPU, {"a": 3})
    assert device_cache.load("choices", CPU)["a"] == 2
    assert [path for path in cache.iterdir() if path.suffix == ".tmp"] == []
    assert stat.S_IMODE(cache.stat().st_mode) & 0o077 == 0


def test_the_identity_is_text_and_names_what_matters() -> None:
    found = device_cache.identity(CPU)
    assert all(type(value) is str for value in found.values())
    assert found["torch"] == torch.__version__
    assert found["threads"] == str(torch.get_num_threads())
    assert {"type", "device", "instructions", "fastgan", "module"} <= set(found)


@pytest.mark.parametrize("changed", ["torch", "module", "device", "threads"])
def test_another_identity_has_none_of_it(changed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device_cache.merge("choices", CPU, {"a": 1})
    here = device_cache.identity(CPU)
    with monkeypatch.context() as patch:
        patch.setattr(device_cache, "identity", lambda device: {**here, changed: "another"})
        assert device_cache.load("choices", CPU) == {}
        device_cache.merge("choices", CPU, {"a": 2})
        assert device_cache.load("choices", CPU) == {"a": 2}
    assert device_cache.load("choices", CPU) == {"a": 1}


def test_the_identity_inside_a_file_is_compared(cache: Path) -> None:
    device_cache.merge("choices", CPU, {"a": 1})
    file = file_of()
    content = json.loads(file.read_text())
    assert content["identity"] == device_cache.identity(CPU)
    content["identity"]["torch"] = "1.0"
    file.write_text(json.dumps(content))
    assert device_cache.load("choices", CPU) == {}


def test_the_module_is_known_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = set()
    for name, content in (("one.so", b"ab"), ("two.so", b"ba")):
        (tmp_path / name).write_bytes(content)
        os.utime(tmp_path / name, (0, 0))
        monkeypatch.setattr(device_cache.backend, "module", type("Module", (), {"__file__": str(tmp_path / name)}))
        hashes.add(device_cache.identity(CPU)["module"])
    assert len(hashes) == 2
    monkeypatch.setattr(device_cache.backend, "module", None)
    assert device_cache.identity(CPU)["module"] == ""


@pytest.mark.parametrize("setting", ["", "relative", "./there", None])
def test_a_relative_folder_is_ignored(setting: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    if setting is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", setting)
    assert device_cache.folder() == tmp_path / "home/.cache/fastgan"
    device_cache.merge("choices", CPU, {"a": 1})
    assert device_cache.load("choices", CPU) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_without_a_home_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.chdir(tmp_path)
    device_cache.merge("choices", CPU, {"a": 1})
    assert device_cache.load("choices", CPU) == {}
    assert list(tmp_path.iterdir()) == []


BROKEN: dict[str, Any] = {
    "empty": lambda text: "",
    "cut short": lambda text: text[: len(text) // 2],
    "without its last character": lambda text: text[:-1],
    "a list": lambda text: "[1, 2]",
    "entries that are a list": lambda text: text.replace('"entries": {', '"entries": [{').rstrip("}\n ") + "}]}",
    "of another form": lambda text: text.replace('"form": 1', '"form": 2'),
    "nested too deep": lambda text: "[" * 100_000,
    "no text": lambda text: "\udcff\udcfe",
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_file_of_another_kind_counts_as_none_and_is_replaced(fault: str) -> None:
    device_cache.merge("choices", CPU, {"a": 1})
    file = file_of()
    text = BROKEN[fault](file.read_text())
    assert text != file.read_text()
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert device_cache.load("choices", CPU) == {}
    device_cache.merge("choices", CPU, {"b": 2})
    assert device_cache.load("choices", CPU) == {"b": 2}


def test_a_process_that_dies_in_the_middle_leaves_the_former_file() -> None:
    device_cache.merge("choices", CPU, {"a": 1})
    code = """
import os, signal
os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
d.merge("choices", torch.device("cpu"), {"a": 2})
"""
    died = process(code)
    died.communicate(timeout=300)
    assert died.returncode == -signal.SIGKILL
    (left,) = device_cache.folder().glob("choices-*.tmp")
    assert json.loads(left.read_text())["entries"] == {"a": 2}  # it was written whole, and not yet in place
    assert device_cache.load("choices", CPU) == {"a": 1}
    begin = time.monotonic()
    device_cache.merge("choices", CPU, {"b": 3})
    assert time.monotonic() - begin < device_cache._LONGEST_WAIT  # the lock went with the process
    assert device_cache.load("choices", CPU) == {"a": 1, "b": 3}
    assert left.exists()  # it might be one that is being written
    os.utime(left, (0, 0))
    device_cache.merge("choices", CPU, {"c": 4})
    assert not left.exists()


def test_two_processes_at_once_lose_nothing() -> None:
    code = """
for i in range(40):
    d.merge("choices", torch.device("cpu"), {f"%s{i}": i})
"""
    running = [process(code % name) for name in "ab"]
    for i in range(40):
        device_cache.merge("choices", CPU, {f"c{i}": i})
    for each in running:
        assert each.communicate(timeout=300)[1] == b""
        assert each.returncode == 0
    assert device_cache.load("choices", CPU) == {f"{name}{i}": i for name in "abc" for i in range(40)}


def test_a_lock_that_is_never_given_back_is_waited_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_cache, "_LONGEST_WAIT", 0.05)
    device_cache.merge("choices", CPU, {"a": 1})
    with device_cache._lock(file_of().with_suffix(".lock")):
        begin = time.monotonic()
        device_cache.merge("choices", CPU, {"b": 2})
        assert time.monotonic() - begin >= 0.05
    assert device_cache.load("choices", CPU) == {"a": 1, "b": 2}


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(device_cache.fcntl, "flock", refuse)
    device_cache.merge("choices", CPU, {"a": 1})
    assert device_cache.load("choices", CPU) == {"a": 1}
    monkeypatch.setattr(device_cache, "fcntl", None)
    device_cache.merge("choices", CPU, {"b": 1})
    assert device_cache.load("choices", CPU) == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("function", "number"),
    [("fsync", errno.ENOSPC), ("fsync", errno.EIO), ("replace", errno.EROFS), ("open", errno.EROFS)],
)
def test_a_full_or_read_only_disk_is_no_error(
    function: str, number: int, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_cache.merge("choices", CPU, {"a": 1})

    def refuse(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, function, refuse)
        device_cache.merge("choices", CPU, {"a": 2})
    assert device_cache.load("choices", CPU) == {"a": 1}
    assert list(cache.glob("*.tmp")) == []


def test_a_folder_that_is_a_file_or_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    device_cache.merge("choices", CPU, {"a": 1})
    assert device_cache.load("choices", CPU) == {}
    if os.geteuid() == 0:  # who may write everywhere
        return
    (tmp_path / "closed").mkdir(mode=0o500)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "closed"))
    device_cache.merge("choices", CPU, {"a": 1})
    assert device_cache.load("choices", CPU) == {}


def test_entries_that_json_does_not_have_change_nothing(cache: Path) -> None:
    device_cache.merge("choices", CPU, {"a": 1})
    device_cache.merge("choices", CPU, {"b": torch.zeros(1)})
    assert device_cache.load("choices", CPU) == {"a": 1}
    assert list(cache.glob("*.tmp")) == []


def test_a_device_that_does_not_answer_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: Any) -> None:
        raise RuntimeError("the driver does not answer")

    monkeypatch.setattr(torch.cuda, "get_device_properties", refuse)
    device = torch.device("cuda", 0)
    device_cache.merge("choices", device, {"a": 1})
    assert device_cache.load("choices", device) == {}
