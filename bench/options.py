"""The options of `python -m bench` and `fastgan bench`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from . import cuda, peers
from .step import SWEEPS

# Of the default run, in their order.
OPS = ("bce", "logits_loss", "segmented", "linear", "mlp", "host", "penalties", "step", "tutorial")
ON_CUDA = ("tiny_cuda_nn", "trainkernel")
EPILOG = """\
`%(prog)s plots RECORD --out DIR` draws the plots of a JSON record. All of it, as the record of a machine:
%(prog)s --full --budget 120 --json FILE.json --csv FILE.csv"""


def parse(arguments: Sequence[str] | None, program: str) -> argparse.Namespace:
    """The options, checked; a bad one ends the process with exit code 2 and a sentence.

    Args:
        arguments: as on the command line; None takes them from there.
        program: what the command is called.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description="Time fastgan against PyTorch and others, in one run.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", metavar="OP", help=f"of {', '.join(OPS)} (default: all)")
    parser.add_argument("--match", default="", help="only cases whose name contains this")
    parser.add_argument(
        "--peers",
        nargs="+",
        default=["default"],
        metavar="PEER",
        help=f"of the training step: default, all, none, or some of {', '.join(map(peers.slug, peers.PEERS))} "
        f"(default: {', '.join(map(peers.slug, peers.DEFAULT))}, where they run)",
    )
    parser.add_argument(
        "--sweep",
        nargs="+",
        default=[],
        metavar="AXIS",
        help="the step by batch, by width, or both; no op unless --only",
    )
    parser.add_argument("--memory", action="store_true", help="peak memory of training processes; no op unless --only")
    parser.add_argument("--full", action="store_true", help="every op, peer and sweep, and memory")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contender, at least 1 (default: 9)")
    parser.add_argument("--seconds", type=float, default=0.06, help="length of a turn, over 0 (default: 0.06)")
    parser.add_argument(
        "--budget",
        type=float,
        default=25.0,  # some minutes for the default run on 2 cores, where one step of `wide` takes 1.5 s
        help="seconds that the rounds of a case may take, over 0; a case runs at least one (default: 25)",
    )
    parser.add_argument("--quick", action="store_true", help="3 rounds of 0.01 s: whether it runs, not how fast")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--eager", action="store_true", help="with cuda: time loops of calls, capture no CUDA graphs")
    parser.add_argument("--tf32", action="store_true", help="with cuda: float32 products rounded to tf32, of both")
    parser.add_argument("--threads", type=int, help="of PyTorch (default: its own choice)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record there too")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the rows there too, each with its environment")
    options = parser.parse_args(arguments)
    _check(parser, options)
    if options.full:
        options.peers, options.sweep, options.memory = ["all"], list(SWEEPS), options.device == "cpu"
    ops = [*OPS, *(ON_CUDA if options.device == "cuda" else ())]
    if options.only is None:
        options.only = [] if (options.sweep or options.memory) and not options.full else ops
    if options.quick:
        options.rounds, options.seconds, options.budget = 3, 0.01, 1.0
    return options


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    known = [*OPS, *(ON_CUDA if options.device == "cuda" else ())]
    choices = {
        "only": ("ops", known, options.only or ()),
        "peers": ("peers", ["default", "all", "none", *map(peers.slug, peers.PEERS)], options.peers),
        "sweep": ("sweeps", list(SWEEPS), options.sweep),
    }
    for option, (kind, names, given) in choices.items():
        for name in given:
            if name not in names:
                parser.error(f"--{option} must name {kind} of {', '.join(names)}, not {name!r}")
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, not {options.rounds}")
    for option in ("seconds", "budget"):
        if not getattr(options, option) > 0:
            parser.error(f"--{option} must be over 0, not {getattr(options, option)}")
    if options.device not in ("cpu", "cuda"):
        parser.error(f"--device must be cpu or cuda, not {options.device!r}")
    if options.device == "cuda" and (reason := cuda.unavailable_reason()):
        parser.error(f"--device cuda cannot be had: {reason}")
    for name in ("eager", "tf32"):
        if getattr(options, name) and options.device != "cuda":
            parser.error(f"--{name} needs --device cuda")
    if options.memory and options.device != "cpu":
        parser.error("--memory needs --device cpu: it is the host's memory that it measures")
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads must be at least 1, not {options.threads}")
    for option in ("json", "csv"):
        file = getattr(options, option)
        if file and not file.absolute().parent.is_dir():
            parser.error(f"--{option}: there is no folder {file.absolute().parent}")
