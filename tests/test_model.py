"""tools/model.py: what its times are made of, and that the page has the tables that the record gives."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import simt_backend

from tools import model, model_parameters, model_time
from tools.model_path import path_of, waits_of
from tools.model_time import PARTS, Time, Work, resident_blocks, time_of

RECORD = json.loads(model.RECORD.read_text())
LAUNCHES = [launch for entry in (*RECORD["steps"], *RECORD["ops"]) for launch in entry["launches"]]
FORWARD = "product_kernel<Fma<float, 64, 64, 0, 0>, 0, 0, 0>"
UPDATE = "product_kernel<Fma<float, 64, 64, 1, 1>, 1, 1, 3>"
CYCLE = 1e-3 / model_parameters.value("clock")  # us


def launch(**counts: Any) -> dict[str, Any]:
    """A launch of one block of one warp that does nothing but what is given."""
    return dict(model.whole({"name": "k", "blocks": 1, "threads": 32, **counts}))


def busy(**counts: Any) -> float:
    """Microseconds of it beside what a launch takes."""
    return time_of(launch(**counts)).total - model_parameters.value("launch")


def test_the_page_has_the_tables_of_the_record() -> None:
    text = model.PAGE.read_text()
    assert model.page(text, RECORD) == text, "python -m tools.model --write"


def test_a_page_without_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="'goals' once, not 0 times"):
        model.page(model.PAGE.read_text().replace("<!-- goals -->", ""), RECORD)


def test_every_launch_has_a_kernel_and_a_time_of_its_parts() -> None:
    assert len(LAUNCHES) > 300
    for one in LAUNCHES:
        time = model.modelled(one)
        assert sum(time.parts.values()) == pytest.approx(time.total)
        assert set(time.parts) <= set(PARTS)
        assert time.total >= model_parameters.value("launch")
        if "note" not in one:
            assert model.kernel_of(one) in model.resources(), one["name"]
            assert model.kernel_of(one) in model.instructions(), one["name"]


def test_an_empty_launch_takes_what_a_launch_takes() -> None:
    assert busy() == 0


@pytest.mark.parametrize(
    ("counts", "cycles"),
    [
        ({"trips": [3, 0]}, 3 * 260),
        ({"atomics": 2}, 2 * 260),
        ({"fences": 1}, 260),
        ({"barriers": [4, 0]}, 4 * 29),
        ({"collectives": [5, 0], "shared_trips": [1, 0]}, 6 * 29),
        ({"grid_barriers": 1}, 1040),
        ({"cluster_barriers": 2}, 2 * 1200),
        ({"cluster_waits": 2}, 2 * 180),
        ({"remote_trips": 3}, 3 * 180),
        ({"wavefronts": [64, 0]}, 64),
        ({"wavefronts": [0, 64]}, 64),
        ({"accesses": [7, 0]}, 7 * 10 * 5),
        ({"accesses": [0, 7]}, 7 * 10 * 1.45),
        ({"read": {"requested": 40}, "l2": 40}, 10),
        # Steps of k whose copies come from L2 take a third of a trip each, three being under way, and the first a trip.
        ({"fills": 1, "steps": 2}, 260),
        ({"fills": 1, "steps": 30}, 30 * 260 / 3),
        # 1000 pieces of 4 floats, each used 32 times, by threads of which each scheduler has one warp, and two.
        ({"kernel": FORWARD, "threads": 128, "copies": [0, 1000]}, 1000 * 4 * 32 / 128 * 1.45),
        ({"kernel": FORWARD, "threads": 256, "copies": [0, 1000]}, 1000 * 4 * 32 / 128),
        # The loop's accesses are among its instructions, where its code has fewer for each; a copy counts as two.
        ({"kernel": FORWARD, "threads": 128, "copies": [0, 1280], "accesses": [0, 30]}, (1280 + 20) * 1.45),
        ({"kernel": FORWARD, "threads": 128, "copies": [0, 1280], "accesses": [0, 210]}, 200 * 10 * 1.45),
        # Copies have their turns first, then reads, or instructions if these take longer.
        ({"copy_wavefronts": 300, "wavefronts": [0, 700], "accesses": [0, 20]}, 300 + 400),
        ({"copy_wavefronts": 300, "wavefronts": [0, 700], "accesses": [0, 50]}, 300 + 50 * 10 * 1.45),
        # Of a block of two warps a scheduler, each instruction is issued in two cycles.
        ({"copy_wavefronts": 100, "threads": 256, "accesses": [0, 50]}, 100 + 50 * 10 * 2),
        # Steps of 128 bytes, of two operands of 64 rows: two are under way.
        ({"kernel": FORWARD.replace("Fma", "Mma"), "fills": 1, "steps": 30, "copies": [0, 30 * 1024]}, 30 * 260 / 2),
        ({"kernel": FORWARD.replace("Fma", "Mma"), "fills": 1, "steps": 30, "copies": [0, 30 * 512]}, 30 * 260 / 3),
        ({"name": "mlp_forward", "threads": 128, "vectors": 1600}, 1600 * 8 / 128 * 1.45),
        # Three values of 8 elements a thread.
        ({"kernel": UPDATE, "written": {"requested": 96}}, 8 * 58 * 5),
        ({"products": {"mma.m16n8k8.tf32": 1000}}, 1000 * 1024 / (946 * 0.62)),
    ],
)
def test_what_is_counted_takes_its_time(counts: dict[str, Any], cycles: float) -> None:
    assert busy(**counts) == pytest.approx(cycles * CYCLE)


def test_a_trip_to_the_memory_takes_longer() -> None:
    from_cache, from_memory = (busy(trips=[10, 0], l2=10, hbm_read=missing) for missing in (0, 10))
    assert from_memory / from_cache == pytest.approx(571 / 260)


def test_bytes_take_their_bandwidth() -> None:
    sectors = (1 << 28) // 32  # 256 MB
    assert busy(l2=sectors) == pytest.approx((1 << 28) / 4863e3)
    assert busy(l2=sectors, hbm_read=sectors) == pytest.approx((1 << 28) / 2750e3)
    assert busy(remote_bytes=1 << 28) == pytest.approx((1 << 28) / 2650e3)


@pytest.mark.parametrize(
    ("threads", "shared", "registers", "resident"),
    [
        (128, 0, 168, 3),  # 65536 / (128 x 168)
        (128, 79360, 168, 2),  # 228 KB of shared memory
        (256, 0, 32, 8),  # 2048 threads
        (32, 0, 16, 32),
        (1024, 0, 64, 1),
    ],
)
def test_blocks_that_a_multiprocessor_has_room_for(threads: int, shared: int, registers: int, resident: int) -> None:
    assert resident_blocks(launch(threads=threads, shared_bytes=shared), registers) == resident


def test_blocks_that_do_not_fit_wait() -> None:
    one, many = (launch(blocks=blocks, threads=128, trips=[5, 0]) for blocks in (132, 132 * 3 + 1))
    assert (time_of(one, 168).rounds, time_of(many, 168).rounds) == (1, 2)
    assert time_of(many, 168).total - time_of(one, 168).total == pytest.approx(5 * 260 * CYCLE)


def test_clusters_share_multiprocessors() -> None:
    def of(blocks: int, cluster: int) -> float:
        return busy(blocks=blocks, cluster=cluster, wavefronts=[0, 1000 * blocks]) / CYCLE

    assert [of(104, 4), of(128, 2), of(64, 8), of(128, 0)] == pytest.approx([1000] * 4)
    assert [of(128, 4), of(128, 8)] == pytest.approx([2000] * 2)


def test_the_fmas_of_a_product_are_those_of_its_tile() -> None:
    def tile(kernel: str, **counts: Any) -> model_time.Tile | None:
        return model_time.tile_of(launch(kernel=kernel, **counts))

    # Two steps of 16 elements of k, of two operands of 64 rows, by a block each.
    copies = {"blocks": 3, "steps": 2}
    fmas = 3 * 2 * 16 * 64 * 64
    assert tile(FORWARD, copies=[0, 3 * 2 * 16 * 128 * 4 // 16], **copies) == (fmas, 64, False)
    assert tile(UPDATE, copies=[3 * 2 * 16 * 128, 0], **copies) == (fmas, 64, True)
    double = FORWARD.replace("float", "double")
    assert tile(double, copies=[0, 3 * 2 * 16 * 128 * 8 // 16], **copies) == (fmas, 128, False)
    assert tile("product_kernel<Mma<bfloat16, 64, 64, 0, 0>, 0, 0, 0>", copies=[0, 3 * 2 * 512], **copies) == (0, 64, 0)
    assert tile("mlp_forward_kernel<float, false>") is None
    products = [name for name in model.resources() if name.startswith("product_kernel<")]
    assert len(products) > 20
    assert all(tile(name) is not None for name in products)


def test_a_record_of_kernels_that_have_changed_keeps_their_code() -> None:
    one = {"name": "linear", "kernel": FORWARD, "blocks": 1, "threads": 128, "accesses": [10, 0]}
    changed = {**one, "instructions": 2 * model.code_of(one)["instructions"]}
    us = [model.modelled(of).total - model_parameters.value("launch") for of in (one, changed)]
    assert us[1] == pytest.approx(2 * us[0])
    kept = json.loads(model.KEPT.read_text())["steps"]
    assert [step["configuration"] for step in kept] == ["ring", "digits", "mnist"]
    assert all({"registers", "static_bytes", "instructions"} <= set(one) for step in kept for one in step["launches"])


def test_products_of_the_library_take_their_flops_and_a_split_one_two_launches() -> None:
    large, small = (
        time_of({"note": {"m": m, "n": m, "k": 4096}, "l2": 1, "hbm_read": 0, "hbm_written": 0}) for m in (4096, 64)
    )
    assert large.total == pytest.approx(2 * 4096**3 / 51.1e6, rel=0.02)  # bench/results/gpu-2026-11-26.json
    assert small.parts["launch"] == 2 * model_parameters.value("launch")


def test_where_time_goes_is_of_products_and_their_epilogues() -> None:
    parts = time_of(launch(name="linear", trips=[4, 0], fills=1, steps=1)).parts
    assert parts["epilogues"] == pytest.approx(4 * 260 * CYCLE)
    assert parts["products"] == pytest.approx(260 * CYCLE)
    assert set(time_of(launch(name="step_loss", trips=[1, 0])).parts) == {"launch", "reductions"}


def timed(total: float, **work: float) -> Time:
    """A launch's time, with that of its work by what of the device it takes."""
    return Time(total, {"launch": total}, 1, 1, Work(**{**dict.fromkeys(Work._fields, 0.0), **work}))


def waiting(*after: list[int] | None) -> list[dict[str, Any]]:
    """Launches that wait for those, or say nothing of it."""
    return [{"name": str(i)} | ({} if one is None else {"after": one}) for i, one in enumerate(after)]


@pytest.mark.parametrize(
    ("after", "total", "chain"),
    [
        ([None] * 5, 15, [0, 1, 2, 3, 4]),
        ([None, [0], [0], [1, 2], None], 1 + 3 + 4 + 5, [0, 2, 3, 4]),
        ([None, [0], [0], [0], [1, 3]], 1 + 4 + 5, [0, 3, 4]),  # 2 is a branch that ends meanwhile
        ([None, [0], [1], [0], [0]], 1 + 2 + 3, [0, 1, 2]),  # the last to end is not the last of the list
        ([None, [], [], [], [0]], 6, [0, 4]),
    ],
)
def test_a_step_takes_the_longest_chain(after: list[list[int] | None], total: float, chain: list[int]) -> None:
    path = path_of(waiting(*after), [timed(1.0 + i) for i in range(5)])
    assert path == (pytest.approx(total), chain)


def test_launches_side_by_side_share_the_device() -> None:
    side_by_side = waiting([], [], [])
    assert path_of(side_by_side, [timed(5, units=2)] * 3).total == 6
    assert path_of(side_by_side, [timed(5, units=4), timed(5, memory=4), timed(5, room=4)]).total == 5
    assert path_of(side_by_side, [timed(5, units=1)] * 3).total == 5
    assert path_of([], []) == (0, [])


@pytest.mark.parametrize("after", [[1], [2], [-1]])
def test_a_launch_does_not_wait_for_what_comes_later(after: list[int]) -> None:
    with pytest.raises(ValueError, match="launch 1"):
        waits_of(waiting(None, after, None))


def test_the_work_of_a_launch() -> None:
    one = {"threads": 128, "trips": [5, 0], "wavefronts": [1320, 0], "l2": 1000, "hbm_read": 100, "remote_bytes": 2650}
    work = time_of(launch(blocks=66, **one), 168).work  # 3 blocks a multiprocessor
    busy_us = time_of(launch(blocks=66, **one), 168).total - model_parameters.value("launch")
    assert work == (
        pytest.approx(busy_us / 6),
        pytest.approx(10 * CYCLE),
        pytest.approx(1e-3),
        pytest.approx(32 / 4863),
        pytest.approx(3.2 / 2750),
    )
    library = time_of({"note": {"m": 64, "n": 64, "k": 1280}, "l2": 1, "hbm_read": 0, "hbm_written": 0}).work
    assert library.units == pytest.approx(64 * 64 * 1280 / (128 * 0.76 * 132) * CYCLE)


def test_the_columns_add_up_to_the_step() -> None:
    launches = [{"name": "k", "blocks": 1, "threads": 32, "trips": [n, 0]} for n in (1, 9, 2, 1)]
    launches[2] |= {"after": [0]}
    launches[3] |= {"after": [1, 2]}
    sums = model.parts_of(launches, 2)
    us = model_parameters.value
    assert sum(sums[part] for part in PARTS) == pytest.approx(sums["all"])
    assert sums["all"] == pytest.approx(2 * us("copy") + 3 * us("launch") + 11 * 260 * CYCLE)
    assert sums["in turn"] == pytest.approx(2 * us("copy") + 4 * us("launch") + 13 * 260 * CYCLE)
    assert sums["other"] == pytest.approx(2 * us("copy"))
    # Side by side, but each has as many blocks as there is room for on the whole device.
    beside = [{**launches[1], "blocks": 132 * 32, "after": []} for _ in range(4)]
    sums = model.parts_of(beside)
    assert sums["all"] == pytest.approx(4 * 9 * 260 * CYCLE)
    assert sums["other"] == pytest.approx(sums["all"] - us("launch") - 9 * 260 * CYCLE)


def test_a_profile_is_put_beside_the_model() -> None:
    profile = {"configuration": "ring", "precision": "fp32", "loop_us": 100.0}
    launches = [
        {"kernel": "Memcpy DtoD ", "us": 1.0},
        {"kernel": "mlp_forward_kernel<float, false>", "us": 9.0},
        {"kernel": "mlp_forward_kernel<float, false>", "us": 11.0},
        {"kernel": "product_kernel<Fma<float, 64, 64, ", "us": 5.0},
        {"kernel": "cublasLtsplitKreduce_kernel<32, 16, int", "us": 2.0},
    ]
    assert model.families(launches) == {"mlp_forward": (2, 20.0), "linear": (1, 5.0), model.LIBRARY: (1, 2.0)}
    lines = model.measured_table(RECORD, [{**profile, "launches": launches}])
    assert any(line.startswith("| ring | linear | 1 | 5.0 |") for line in lines)
    assert lines[-1].startswith("| ring | the step | 5 | 100 |")


def test_the_record_has_every_configuration_with_and_without_penalties() -> None:
    found = {(step["configuration"], step["path"], step["penalty"]) for step in RECORD["steps"]}
    assert {(name, "default", "none") for name in ("ring", "digits", "mnist", "wide")} <= found
    assert {("ring", "default", "R1"), ("digits", "default", "R1"), ("mnist", "tiled", "none")} <= found


def test_parameters_have_sources() -> None:
    assert all(one.source for one in model_parameters.H100.values())
    used = copy.deepcopy(model_parameters.H100)
    with pytest.raises(KeyError):
        model_parameters.value("no such figure")
    assert set(model_time.FMAS_OF[shape][0] for shape in model_time.FMAS_OF) <= set(used)


@pytest.mark.deep
def test_counting_anew_gives_the_record(tmp_path: Any) -> None:
    if reason := simt_backend.unavailable_reason():
        pytest.skip(reason)
    file = tmp_path / "counts.json"
    command = [sys.executable, "-m", "tools.model", "--count", "--only", "ring default none", "--record", str(file)]
    subprocess.run(command, cwd=model.ROOT, check=True, capture_output=True, timeout=600)
    (again,) = json.loads(file.read_text())["steps"]
    same = ("configuration", "path", "penalty")
    (kept,) = (step for step in RECORD["steps"] if all(step[key] == again[key] for key in same))
    # Where tensors lie is another time elsewhere: what the cache holds may differ a little, what kernels do may not. On
    # the host they begin at multiples of 64 bytes, so that how many lines of 128 a copy touches, and with it its
    # wavefronts, differs too.
    by_lines = ("copy_wavefronts", "wavefronts", "least")
    for one, two in zip(kept["launches"], again["launches"], strict=True):
        places = ("l2", "hbm_read", "hbm_written", "read", "written", "copied", *by_lines, *model.code_of(two))
        assert {k: v for k, v in one.items() if k not in places} == {k: v for k, v in two.items() if k not in places}


def counts_of(program: str) -> Any:
    """What the last line of a program says that counts, in JSON."""
    if reason := simt_backend.unavailable_reason():
        pytest.skip(reason)
    environment = {**os.environ, "PYTHONPATH": str(model.ROOT / "tests"), "FASTGAN_TUNE": "0"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=model.ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.deep
def test_another_batch_of_fakes_for_g_is_no_launch_more() -> None:
    """G is the same in both halves of a step: one pass makes the fakes of both, but where they wait in D's way."""
    program = (
        "import json, torch\n"
        "from fastgan import TrainStep\n"
        "from fastgan.nn import MLP\n"
        "from tools.model_counts import counting\n"
        "found = []\n"
        "with counting() as (counter, module):\n"
        "    module.set_layer_path('tiled')\n"
        "    for options in ({'reuse_fake': True}, {}, {'r1_gamma': 1.0, 'r1_every': 1}):\n"
        "        pair = MLP([8, 32, 32, 16], 'relu', 'tanh'), MLP([16, 32, 32, 1])\n"
        "        step = TrainStep(*pair, *(torch.optim.Adam(m.parameters()) for m in pair), **options)\n"
        "        noise = torch.randn(1 if step.reuse_fake else 2, 64, 8)\n"
        "        for _ in range(2):\n"
        "            counter.start(True)\n"
        "            step.step(torch.randn(64, 16), noise=noise)\n"
        "            launched = [one['name'] for one in counter.launches()]\n"
        "        found.append([launched.count('linear'), launched.count('pack_rows')])\n"
        "print(json.dumps(found))\n"
    )
    reused, fresh, penalized = counts_of(program)
    assert min(fresh) > 0
    assert fresh == reused
    assert penalized[1] == fresh[1] + 1


@pytest.mark.deep
def test_the_library_s_products_are_counted() -> None:
    program = (
        "import json, torch\n"
        "from fastgan import functional\n"
        "from tools.model_counts import counting\n"
        "x, w, b = (torch.randn(*n, requires_grad=True) for n in ((64, 96), (80, 96), (80,)))\n"
        "with counting() as (counter, module):\n"
        "    module.set_layer_path('library')\n"
        "    functional.linear_act(x, w, b, 'relu').sum()\n"
        "    counter.start(True)\n"
        "    functional.linear_act(x, w, b, 'relu').sum().backward()\n"
        "    print(json.dumps([one for one in counter.launches() if 'note' in one]))\n"
    )
    counted = counts_of(program)
    notes = [one["note"] for one in counted]
    assert [(note["m"], note["n"], note["k"]) for note in notes] == [(64, 80, 96), (80, 96, 64), (64, 96, 80)]
    sectors = [one["l2"] for one in counted]
    assert all(n >= (64 * 96 + 80 * 96 + 64 * 80) * 4 // 32 for n in sectors)
