"""Running a protocol: its seeds in parallel processes, its baselines, and the report in JSON, CSV and a picture."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgan import build_info, metrics
from fastgan.data.dataset import Dataset
from fastgan.evaluation import measures
from fastgan.evaluation.protocols import PROTOCOLS, Protocol, part_of
from fastgan.training import pictures
from fastgan.training.trainer import Trainer

CEILING, FLOOR, MIXTURE = "real data, held out", "uniform noise", "Gaussian mixture by EM"


@dataclass
class Row:
    """What a protocol found of an entrant or a baseline.

    Attributes:
        seeds: by number of the seed its measures, by name; `seconds` among them is the time of training or fitting.
        samples: (N, data) of the first seed, for the picture.
    """

    seeds: dict[int, dict[str, float]] = field(default_factory=dict)
    samples: Tensor | None = None

    def summary(self) -> dict[str, tuple[float, float]]:
        """Mean and standard error of each measure; NaN is left out, as of modes that have no samples."""
        found = {}
        for name in {name: None for seed in self.seeds.values() for name in seed}:
            values = [seed[name] for seed in self.seeds.values() if not math.isnan(seed.get(name, math.nan))]
            found[name] = measures.mean_and_error(values) if values else (math.nan, math.nan)
        return found


def run_protocol(
    name: str,
    seeds: int,
    *,
    entrants: Sequence[str] | None = None,
    where: str | None = None,
    processes: int | None = None,
    options: dict[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
    save: Callable[[dict[str, Row]], None] = lambda rows: None,
) -> dict[str, Row]:
    """Train, draw and measure the entrants of a protocol and its baselines, over seeds.

    Args:
        name: of PROTOCOLS.
        seeds: how many; they are 0, 1, ...
        entrants: those to train; by default the protocol's own choice.
        where: the files of the data, where they are not in their usual place.
        processes: at a time; by default one for each core, and no more than there is to do.
        options: of training that replace the entrants', which then are not the protocol's: to try one quickly.
        say: is told what was done.
        save: is given what there is, after each seed, so that what is interrupted is not lost.

    Returns:
        A Row for each entrant and baseline, by name.

    Raises:
        DataError: the data is missing.
        ValueError: there is no such entrant.
    """
    protocol = PROTOCOLS[name]
    chosen = entrants or [title for title, entrant in protocol.entrants.items() if entrant.by_default]
    for title in chosen:
        if title not in protocol.entrants:
            raise ValueError(f"entrant must be one of {', '.join(protocol.entrants)} for {name}, not {title!r}")
    where = where if where is not None else protocol.where
    protocol.build(0, where)  # fail here, in one sentence, where the data is missing
    jobs = [(title, seed) for title in (*chosen, MIXTURE, CEILING, FLOOR) for seed in range(seeds)]
    cores = len(os.sched_getaffinity(0))
    workers = min(processes or cores, len(jobs))
    threads = max(1, cores // workers)
    rows = {title: Row() for title in dict.fromkeys(title for title, _ in jobs)}
    # Fresh interpreters: a forked one would share the threads of this one, and on CUDA its context.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        with _ended_by_sigterm():
            waiting = {
                pool.submit(run_seed, name, title, seed, where, threads, options): (title, seed) for title, seed in jobs
            }
            for done in as_completed(waiting):
                title, seed = waiting[done]
                found, samples = done.result()
                rows[title].seeds[seed] = found
                if seed == 0:
                    rows[title].samples = samples
                shown = ", ".join(f"{key} {value:.4g}" for key, value in list(found.items())[:4])
                say(f"{title}, seed {seed}: {shown}; {found['seconds']:.0f} s")
                save(rows)
    except BaseException:  # Ctrl-C, or an error of a seed: nothing more is begun, and what runs is ended
        _stop(pool)
        raise
    pool.shutdown()
    return rows


def _stop(pool: ProcessPoolExecutor) -> None:
    """End a pool's processes, which leave their temporary folders tidy where they are given the time."""
    processes = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(3)
        process.kill()


def _end_with_parent() -> None:
    """In a process of the pool: end it where the one that started it is no more, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Within it SIGTERM raises SystemExit; only the main thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_seed(
    name: str, title: str, seed: int, where: str, threads: int, options: dict[str, Any] | None = None
) -> tuple[dict[str, float], Tensor]:
    """One entrant or baseline of a protocol with one seed: its measures, and its first samples.

    Args:
        name: of the protocol.
        title: of the entrant or baseline.
        seed: of data, training and samples.
        where: the files of the data.
        threads: of torch.
        options: see `run_protocol`.

    Returns:
        The measures, and (N, data) samples.
    """
    torch.set_num_threads(threads)
    protocol = PROTOCOLS[name]
    known, held_out = protocol.build(seed, where)
    begin = time.perf_counter()
    labels: Tensor | None = None
    if title == CEILING:
        samples, labels = _real(protocol, known, seed, where)
    elif title == FLOOR:
        samples = metrics.uniform_noise(known.samples, protocol.samples, seed)
    elif title == MIXTURE:
        of_images = known.modes is None
        own = known if of_images else part_of(known, torch.arange(20_000))  # of which no mode is in doubt
        samples = measures.mixture_of(
            own.samples,
            own.labels if of_images else None,
            protocol.samples,
            protocol.components,
            protocol.least_variance,
            seed,
        )
        labels = torch.arange(len(samples)) % known.num_classes if of_images else None
    else:
        samples, labels = _train(protocol, title, known, seed, options)
    seconds = time.perf_counter() - begin
    samples = measures.on_levels(samples, known)
    if known.modes is not None:
        found = measures.of_mixture(samples, known.modes, known.mode_std, held_out.samples)
    else:
        found = measures.of_data(samples, labels, held_out.samples, held_out.labels, seed)
    return {**found, "seconds": seconds}, samples[: protocol.samples]


def _real(protocol: Protocol, known: Dataset, seed: int, where: str) -> tuple[Tensor, Tensor | None]:
    """Real samples in the place of generated ones: fresh ones of a mixture, else some that models learn from."""
    if known.modes is not None:
        return protocol.build(seed + 500_000, where)[1].samples, None
    rows = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))[: protocol.samples]
    return known.samples[rows], None if known.labels is None else known.labels[rows]


def _train(
    protocol: Protocol, title: str, known: Dataset, seed: int, options: dict[str, Any] | None
) -> tuple[Tensor, Tensor | None]:
    entrant = protocol.entrants[title]
    given: dict[str, Any] = {**entrant.options, **(options or {}), "seed": seed}
    networks: dict[str, Any] = {}
    if entrant.networks is not None:
        torch.manual_seed(seed)
        networks = dict(zip(("generator", "discriminator"), entrant.networks(), strict=True))
    with tempfile.TemporaryDirectory() as runs:
        rare = 2**31  # no pictures and checkpoints on the way
        trainer = Trainer(known, **networks, runs=runs, sample_every=rare, checkpoint_every=rare, **given)
        trainer.train(quiet=True)
        samples = trainer.sample(protocol.samples, seed=seed + 1)
    if not trainer.config.conditional:
        return samples, None
    turns = torch.tensor(known.classes)
    return samples, turns.repeat(-(-len(samples) // len(turns)))[: len(samples)]


def as_json(name: str, rows: dict[str, Row]) -> dict[str, Any]:
    """All that was found, as JSON has it: NaN is None."""
    protocol = PROTOCOLS[name]
    facts = build_info.info()
    build = facts["build"] or {}

    def plain(value: float) -> float | None:
        return None if math.isnan(value) else float(f"{value:.6g}")

    return {
        "protocol": name,
        "source": protocol.source,
        "note": protocol.note,
        "published": dict(protocol.published),
        "environment": {
            "fastgan": facts["fastgan"],
            "torch": facts["torch"],
            "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
            "instructions": build.get("cpu_instructions", "not compiled"),
        },
        "rows": {
            title: {
                "mean": {key: plain(mean) for key, (mean, _) in row.summary().items()},
                "standard_error": {key: plain(error) for key, (_, error) in row.summary().items()},
                "seeds": [
                    {"seed": number, **{key: plain(value) for key, value in seed.items()}}
                    for number, seed in sorted(row.seeds.items())
                ],
            }
            for title, row in rows.items()
            if row.seeds
        },
    }


def as_csv(rows: dict[str, Row]) -> str:
    """A line for each row and seed."""
    names = list({name: None for row in rows.values() for seed in row.seeds.values() for name in seed})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "seed", *names])
    for title, row in rows.items():
        for seed, found in sorted(row.seeds.items()):
            writer.writerow([title, seed, *(found.get(name, "") for name in names)])
    return text.getvalue()


def table(name: str, rows: dict[str, Row]) -> list[list[str]]:
    """Measures as rows, what was measured as columns; the published row's values first, where there are any."""
    published = PROTOCOLS[name].published
    heads = ["", *(["published"] if published else []), *rows]
    summaries = {title: row.summary() for title, row in rows.items()}
    names = list({key: None for summary in summaries.values() for key in summary})
    found = [heads]
    for key in names:
        line = [key, *([published.get(key, "")] if published else [])]
        for summary in summaries.values():
            mean, error = summary.get(key, (math.nan, math.nan))
            shown = "" if math.isnan(mean) else f"{mean:.4g}"
            line.append(shown + ("" if math.isnan(error) or not shown else f" ± {error:.2g}"))
        found.append(line)
    return found


def write(name: str, rows: dict[str, Row], folder: Path) -> None:
    """Write results.json and results.csv into a folder, which is made.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(as_json(name, rows), indent=1, ensure_ascii=False) + "\n"
    (folder / "results.json").write_text(content, encoding="utf-8")
    (folder / "results.csv").write_text(as_csv(rows), encoding="utf-8")


def write_picture(name: str, rows: dict[str, Row], folder: Path) -> None:
    """Write samples.png into a folder: the samples of the first seed, of a mixture over its density.

    Raises:
        OSError: it cannot be written.
    """
    known = None if PROTOCOLS[name].where else PROTOCOLS[name].build(0, "")[0]
    shown = {title: row.samples for title, row in rows.items() if row.samples is not None}
    if known is not None and known.modes is not None:
        pictures.save_over_density(shown, known.modes, known.mode_std, folder / "samples.png")
        return
    first = next(iter(shown.values()))
    side = math.isqrt(first.shape[1])
    each = torch.cat([samples[:20] for samples in shown.values()])
    pictures.image_grid(each, (side, side), 20).save(folder / "samples.png", format="PNG")
