"""The command line: `fastgan train|resume|replay|sample|export|eval|bench|doctor`.

Exit codes: 0 done; 1 a kernel failed its verification; 2 refused, or training diverged; 130 and 143 stopped by Ctrl-C
and SIGTERM, after saving a checkpoint.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_type_hints

import torch
import typer

import fastgan
from fastgan.output import complain, say
from fastgan.training.config import TrainConfig, default_in_words

# The modules of these need more than typer, and are loaded when a command runs.
_EXTRA = ("matplotlib", "PIL", "rich", "safetensors", "sklearn", "tomlkit")

app = typer.Typer(
    name="fastgan",
    help="Train MLP GANs on real data, and look at what they draw.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"fastgan {fastgan.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Train MLP GANs on real data, and look at what they draw."""


def _option(text: str, default: str, *names: str) -> Any:
    """An option whose default depends on the data and is therefore named in its help."""
    return typer.Option(*names, help=f"{text} (default: {default})", show_default=False)


def _with_training_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose **options are those of training, each with its type, its help and its defaults."""
    # Of others, widths and words, a string is asked.
    types: dict[Any, Any] = {bool: bool, int: int, float: float, float | None: float}
    parameters = list(inspect.signature(command, eval_str=True).parameters.values())[:-1]
    hints = get_type_hints(TrainConfig)
    for each in fields(TrainConfig):
        if each.name not in {parameter.name for parameter in parameters}:
            flag = each.name.replace("_", "-")
            names = [f"--{flag}/--no-{flag}"] if hints[each.name] is bool else []
            declared = _option(each.metadata["text"], default_in_words(each.name), *names)
            annotation: Any = Annotated[types.get(hints[each.name], str) | None, declared]
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(inspect.Parameter(each.name, kind, default=None, annotation=annotation))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


@app.command()
@_with_training_options
def train(
    data: Annotated[
        str,
        typer.Argument(
            help="digits, ring8, grid25; a folder of IDX files (MNIST, Fashion-MNIST; raw or .gz); a .npy, "
            ".npz or .csv file; or a folder of images."
        ),
    ],
    **options: Any,
) -> None:
    """Train on DATA; everything goes to a new folder such as runs/00003-digits/."""
    with _processes() as job:
        with _one_line_errors(TypeError, ValueError):
            from fastgan.training.trainer import Trainer

            for name in ("g_hidden", "d_hidden"):
                options[name] = _widths(name, options[name])
            trainer = Trainer(data, process_group=job and job.group, **options)
        _train(trainer, job)


@app.command()
def resume(
    run: Annotated[
        str | None,
        typer.Argument(help="A run folder or its number; without it, the newest run.", show_default=False),
    ] = None,
    steps: Annotated[int | None, _option("Steps in all, at least those done.", "the run's own")] = None,
    extend: Annotated[
        list[str] | None,
        typer.Option(help="name=value, again for each: an option that a run can go on with changed.", metavar="OPTION"),
    ] = None,
    runs: Annotated[str, typer.Option(help="Folder of the run folders.")] = "runs",
) -> None:
    """Go on with RUN from its newest checkpoint, exactly as if it had not been interrupted."""
    with _processes() as job:
        with _one_line_errors(TypeError, ValueError):
            from fastgan.training.config import parse_extension
            from fastgan.training.trainer import Trainer

            changed = parse_extension(extend or ())
            trainer = Trainer.resume(run, steps=steps, extend=changed, runs=runs, process_group=job and job.group)
        _train(trainer, job)


@app.command()
def replay(
    run: Annotated[
        str | None,
        typer.Argument(help="A run folder or its number; without it, the newest run.", show_default=False),
    ] = None,
    runs: Annotated[str, typer.Option(help="Folder of the run folders.")] = "runs",
) -> None:
    """Take the step again at which RUN was stopped by a value that is not finite, and say where it began."""
    with _one_line_errors(TypeError, ValueError):
        from fastgan.training.replay import replay as take_again

        for line in take_again(run, runs):
            say(line)


@app.command()
def sample(
    run: Annotated[
        str | None,
        typer.Argument(help="A run folder or its number; without it, the newest run.", show_default=False),
    ] = None,
    count: Annotated[int, typer.Option("--number", "--count", "-n", help="Number of samples, at least 1.")] = 100,
    label: Annotated[
        str | None,
        _option("Of a conditional run, class of all samples, or several that take turns: 3, or 0,3,7.", "all in turn"),
    ] = None,
    where: Annotated[str | None, _option("Of a table, column=level that all rows have.", "rows as the data's")] = None,
    interpolate: Annotated[
        int | None,
        _option("Frames from each sample to the next, at least 1: a walk through all, back to the first.", "none"),
    ] = None,
    checkpoint: Annotated[str | None, _option("The step of one that is kept, best or newest.", "newest")] = None,
    latent_scale: Annotated[float | None, _option("What latents are multiplied by, over 0.", "the run's")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise, at least 0.")] = 0,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="A .png picture, a .gif of a walk, a .npy or .npz array in the data's own units, or a .csv table.",
        ),
    ] = Path("samples.png"),
    runs: Annotated[str, typer.Option(help="Folder of the run folders.")] = "runs",
) -> None:
    """Draw samples from one of RUN's checkpoints, any number of them; the run stays as it is."""
    with _one_line_errors(TypeError, ValueError):
        from fastgan.training.run_samples import open_run
        from fastgan.training.sample_files import check_out, write_parts

        check_out(out, frames=interpolate)
        labels = _labels(label)
        if interpolate is not None and where is not None:
            raise ValueError("where must not be given beside interpolate: a walk passes through other levels")
        opened = open_run(run, runs, checkpoint, latent_scale)
        if interpolate is None:
            parts, number = opened.drawn(count, label=labels, seed=seed, where=where), count
        else:
            parts, number = opened.walk(count, interpolate, label=labels, seed=seed), count * interpolate
        write_parts(parts, number, {**opened.facts, "classes": opened.turns(labels)}, out, interpolate)
        say(f"{number} samples in {out}")


@app.command()
def export(
    run: Annotated[
        str | None,
        typer.Argument(help="A run folder or its number; without it, the newest run.", show_default=False),
    ] = None,
    format: Annotated[
        str, typer.Option("--format", help="pt2 (torch.export), onnx, state_dict (of plain torch layers) or all.")
    ] = "all",
    checkpoint: Annotated[str | None, _option("The step of one that is kept, best or newest.", "newest")] = None,
    out: Annotated[
        Path | None,
        _option("Folder of the files; made where it is not there.", "export in the run folder", "--out", "-o"),
    ] = None,
    runs: Annotated[str, typer.Option(help="Folder of the run folders.")] = "runs",
) -> None:
    """Write RUN's generator, which sample draws from, in formats that load without fastgan, with a model card."""
    with _one_line_errors(TypeError, ValueError):
        from fastgan.training.export import ExportError, export_run

        try:
            files, left_out = export_run(run, out=out, formats=format, checkpoint=checkpoint, runs=runs)
        except ExportError as error:
            _refuse(str(error))
        for file, difference in files.items():
            checked = "" if difference is None else f", within {difference:.1e} of the run's own samples"
            say(f"{file}: {file.stat().st_size:,} bytes{checked}")
        if left_out:
            complain(f"fastgan: {left_out}")


@app.command("eval")
def evaluate(
    run: Annotated[
        str | None,
        typer.Argument(
            help="A run folder or its number (without it, the newest run), or a protocol: pacgan-ring8, pacgan-grid25, "
            "unrolled-ring8, digits, fashion-mnist.",
            show_default=False,
        ),
    ] = None,
    count: Annotated[
        int | None, _option("Generated samples, at least 2.", "tables: as many as the data has", "--number", "-n")
    ] = None,
    holdout: Annotated[
        Path | None, typer.Option(help="Data that the run has not seen; of a table, a .csv file.", show_default=False)
    ] = None,
    target: Annotated[str | None, _option("Of a table, column that models learn to tell.", "the last one")] = None,
    seed: Annotated[int, typer.Option(help="Of the generated samples, at least 0.")] = 0,
    seeds: Annotated[int | None, _option("Of a protocol, seeds, at least 1.", "10")] = None,
    entrant: Annotated[
        list[str] | None, _option("Of a protocol, a GAN of it, by its name; may be given again.", "the protocol's")
    ] = None,
    data: Annotated[str | None, _option("Of a protocol, the folder of its data.", "where Debian puts it")] = None,
    processes: Annotated[int | None, _option("Of a protocol, seeds at a time.", "as many as cores")] = None,
    steps: Annotated[int | None, _option("Of a protocol, fewer steps, to try it.", "the protocol's")] = None,
    out: Annotated[
        Path | None,
        _option("A .json file for all scores; of a protocol, a folder.", "none; eval/PROTOCOL", "--out", "-o"),
    ] = None,
    runs: Annotated[str, typer.Option(help="Folder of the run folders.")] = "runs",
) -> None:
    """Measure what RUN draws beside its data, or train and measure the GANs of a published protocol over seeds."""
    with _one_line_errors(TypeError, ValueError):
        from fastgan.evaluation import command

        of_protocol = {"seeds": seeds, "entrant": entrant, "data": data, "processes": processes, "steps": steps}
        of_run = {"number": count, "holdout": holdout, "target": target}
        command.evaluate(run, of_run, of_protocol, seed=seed, out=out, runs=runs)


@app.command(
    add_help_option=False,  # every option is the benchmark's, --help too
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def bench(context: typer.Context) -> None:
    """Time fastgan against PyTorch, JAX and others; `fastgan bench --help` has the options."""
    try:
        from fastgan.bench.__main__ import main
    except ModuleNotFoundError as error:
        if error.name != "fastgan.bench":
            raise
        _refuse("the benchmark comes with an installation of fastgan; in a checkout it is python -m bench")
    raise typer.Exit(main(context.args, program="fastgan bench"))


@app.command()
def doctor(
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compare every kernel with its reference on each device here, and remember it."),
    ] = False,
) -> None:
    """Show versions, how fastgan was built, which backends run here, and why any does not."""
    facts = fastgan.info()
    say(f"fastgan {facts['fastgan']}, Python {facts['python']}, PyTorch {facts['torch']}")
    say("build:")
    for name, value in (facts["build"] or {"compiled": "no"}).items():
        say(f"  {name}: {value}")
    say(f"backend in force: {facts['backend']}")
    for name, state in facts["backends"].items():
        say(f"  {name}: {state}")
    say("devices:")
    for name, description in facts["devices"].items():
        say(f"  {name}: {description}")
    say(f"choice of the fastest way of a step: {facts['tuning']}")
    say("where the compiled kernels do not run:")
    for what, instead in facts["fallbacks"].items():
        say(f"  {what}: {instead}")
    if facts["rebuild"]:
        say(facts["rebuild"])
    passed = not verify or _verify(facts["devices"])
    # What is known now: the verification may have changed it.
    for what, instead in fastgan.info()["switched_off"].items():
        say(f"switched off: {what}; {instead}")
    if not passed:
        raise typer.Exit(1)


def _verify(devices: Iterable[str]) -> bool:
    """Verify each device that compiled kernels run on, and print what was found; whether all passed."""
    from fastgan import backend

    passed = True
    ready = [name for name in devices if backend.unavailable_reason(name.partition(":")[0]) is None]
    if not ready or fastgan.current_backend() == "reference":
        _refuse("there is nothing to verify: no compiled kernels run here")
    for name in ready:
        with _one_line_errors():
            found = fastgan.verify(name)
        say(f"verification of {name}:")
        say(str(found))
        passed = passed and found.passed
    return passed


def _widths(name: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(width) for width in text.split(",") if text.strip())
    except ValueError:
        raise ValueError(f"{name} must be widths separated by commas, such as 256,512, not {text!r}") from None


def _labels(text: str | None) -> int | list[int] | None:
    if text is None:
        return None
    try:
        labels = [int(label) for label in text.split(",")]
    except ValueError:
        raise ValueError(f"label must be a class, or classes separated by commas such as 0,3,7, not {text!r}") from None
    return labels if len(labels) > 1 else labels[0]


@contextlib.contextmanager
def _processes() -> Iterator[Any]:
    """The job of torchrun that this process is one of, or None; where another of its processes has ended, one of the
    others says so."""
    with _one_line_errors():
        from fastgan.processes import ProcessesError
        from fastgan.training.job import launched
    with launched() as job:
        try:
            yield job
        except ProcessesError as error:
            sentence = str(error) if job is None else job.tell_of_the_dead()
            if sentence is not None:
                complain(f"fastgan: {sentence}")
            raise typer.Exit(1) from None


def _train(trainer: Any, job: Any) -> None:
    if job is not None:
        job.how_to_go_on = trainer.how_to_go_on
    with _one_line_errors():
        trainer.train()


@contextlib.contextmanager
def _one_line_errors(*refusals: type[Exception]) -> Iterator[None]:
    """Answer the errors that a user can cause, and `refusals` too, with their one sentence, and exit."""
    try:
        from fastgan.training.checkpoint import CheckpointError
        from fastgan.training.finite import NonFiniteError
    except ModuleNotFoundError as error:
        _missing(error)
    refused: tuple[type[Exception], ...] = (CheckpointError, NonFiniteError, *refusals)
    try:
        yield
    except ModuleNotFoundError as error:
        _missing(error)
    except OSError as error:
        _refuse(_about_file(error))
    except refused as error:
        _refuse(str(error))
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _refuse(f"memory does not suffice: {(str(error) or 'none is left').splitlines()[0]}")
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _about_file(error: OSError) -> str:
    """The sentence of an error of the operating system."""
    if error.strerror is None:
        return str(error)
    return f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename else error.strerror


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; torch's CPU allocator says so in a RuntimeError."""
    phrases = ("allocate memory", "not enough memory", "Storage size calculation overflowed")
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or any(phrase in str(error) for phrase in phrases)


def _missing(error: ModuleNotFoundError) -> NoReturn:
    if (error.name or "").split(".")[0] not in _EXTRA:
        raise error
    _refuse(f'training needs {error.name}: pip install "fastgan[train]"')


def _refuse(sentence: str) -> NoReturn:
    complain(f"fastgan: {' '.join(sentence.split())}")
    raise typer.Exit(2)
