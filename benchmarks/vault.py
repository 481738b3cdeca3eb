"""The vault beside gocryptfs and a plain directory, in one run of interleaved rounds.

Each round sets every system up afresh and takes them through the same trials, group by group, in
an order that rotates.  Reports medians.  Needs root, to drop the kernel's caches.  One thread.

    python -m benchmarks.vault [--rounds N] [--quick] [--dir DIR] [--only TRIALS]
                               [--systems NAMES] [--no-save]
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NoReturn

from benchmarks import facts, results
from benchmarks.systems import SYSTEMS, System
from benchmarks.tree import generate
from benchmarks.trials import TRIALS, Sample, needed, run

MEMORY = Path("/dev/shm")  # the sources lie here, so that no disk is read while writing is timed
FULL = (1 << 30, 15_500)  # bytes of the large file, files of the tree
QUICK = (64 << 20, 1_500)


@dataclass
class Figures:
    """Everything measured: samples by trial and system, peaks by system, facts."""

    samples: dict[str, dict[str, list[Sample]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    peak_rss: dict[str, float] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=facts.machine)

    def seconds(self, trial: str, system: str) -> float | None:
        """Return the median seconds of a trial on a system, if it was measured."""
        samples = self.samples[trial].get(system)
        return median(sample.seconds for sample in samples) if samples else None

    def server_cpu(self, trial: str, system: str) -> float | None:
        """Return the median CPU seconds of a system's server during a trial."""
        samples = self.samples[trial].get(system)
        return median(sample.server_cpu for sample in samples) if samples else None

    def ratio(self, trial: str, system: str, baseline: str) -> float | None:
        """Return one system's time as a multiple of another's: the median of the rounds' ratios.

        What slows the machine for a while slows both in the same round, and cancels.
        """
        ours, theirs = self.samples[trial].get(system), self.samples[trial].get(baseline)
        if not ours or not theirs:
            return None
        return median(our.seconds / their.seconds for our, their in zip(ours, theirs, strict=True))


def main() -> int:
    """Measure, print, append."""
    args = _arguments()
    if os.geteuid() != 0:
        print("benchmarks.vault: needs root, to drop the kernel's caches", file=sys.stderr)
        return 1
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        figures = _run(args)
    except subprocess.CalledProcessError as error:
        said = (error.stderr or b"").decode(errors="replace").strip()
        print(f"benchmarks.vault: {error}\n{said}", file=sys.stderr)
        return 1
    _report(args, figures)
    return 0


def _run(args: argparse.Namespace) -> Figures:
    """Measure in working directories that are gone afterwards, however it ends."""
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory("-cisfs-bench", dir=args.dir)))
        memory = Path(stack.enter_context(tempfile.TemporaryDirectory("-cisfs-bench", dir=MEMORY)))
        return _measure(args, work, memory)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.vault", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--quick", action="store_true", help="a small smoke test, never saved")
    parser.add_argument(
        "--dir", type=Path, default=Path("/var/tmp"), help="where to work: on the disk of interest"
    )
    parser.add_argument(
        "--only",
        type=_names(TRIALS),
        default=list(TRIALS),
        metavar="TRIALS",
        help=", ".join(TRIALS),
    )
    parser.add_argument(
        "--systems", type=_names(SYSTEMS), default=list(SYSTEMS), metavar="NAMES", help="likewise"
    )
    parser.add_argument("--no-save", action="store_true", help="print only")
    return parser.parse_args()


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Return an argument type: names out of `known`, with commas between."""
    allowed = list(known)

    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        if unknown := set(names) - set(allowed):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not of {', '.join(allowed)}")
        return names

    return parse


def _measure(args: argparse.Namespace, work: Path, memory: Path) -> Figures:
    """Run all rounds; `work` and `memory` are empty directories, deleted by the caller."""
    big, files = QUICK if args.quick else FULL
    sources = {"BIG": str(memory / "big"), "TREE": str(memory / "tree")}
    with (memory / "big").open("wb") as file:
        for _ in range(big >> 20):
            file.write(os.urandom(1 << 20))
    tree = generate(memory / "tree", files)
    figures = Figures()
    figures.facts["filesystem"] = facts.filesystem_of(work)
    figures.facts["large file"] = f"{big >> 20} MiB"
    figures.facts["tree"] = str(tree)
    print(f"tree: {tree}", flush=True)
    systems = [SYSTEMS[name](work) for name in args.systems]
    for number in range(args.rounds):
        turn = number % len(systems)
        _round(args.only, systems[turn:] + systems[:turn], sources, figures)
        print(f"round {number + 1} of {args.rounds} done", flush=True)
    return figures


def _round(
    only: list[str], systems: list[System], sources: dict[str, str], figures: Figures
) -> None:
    """Set all systems up, take each group of trials through all of them, take them down."""
    with ExitStack() as stack:
        for system in systems:
            stack.callback(system.stop)
            system.start()
            figures.facts.update(system.details())
        for group in needed(set(only)):
            for system in systems:
                for trial in group:
                    sample = run(trial, system, sources)
                    figures.samples[trial.name][system.name].append(sample)
                    print(f"  {trial.name:10} {system.name:10} {sample.seconds:8.2f} s", flush=True)
        for system in systems:
            peak = max(figures.peak_rss.get(system.name, 0.0), system.usage().peak_rss)
            figures.peak_rss[system.name] = peak


def _report(args: argparse.Namespace, figures: Figures) -> None:
    text = _section(args, figures)
    print("\n" + text)
    if args.quick or args.no_save:
        return
    print("appended to", results.append_markdown("vault", text))
    print("appended to", results.append_json("vault", _record(args, figures)))


def _section(args: argparse.Namespace, figures: Figures) -> str:
    header = ["trial", *(f"{name}, s" for name in args.systems)]
    header += ["cisfs/gocryptfs", "target", "met", "cisfs/plain"]
    servers = [name for name in args.systems if name != "plain"]
    header += [f"{name} CPU, s" for name in servers]
    table = results.markdown_table(header, [_row(args, figures, name) for name in args.only])
    told = dict(figures.facts)
    title = told.pop("date") + f", median of {args.rounds}"
    peaks = ", ".join(f"{name} {figures.peak_rss[name]:.0f} MiB" for name in servers)
    notes = [
        "Times are medians; ratios are medians of the rounds' own ratios, which noise moves less.",
        f"Peak resident size of the server: {peaks}.",
    ]
    return results.section(title, told, table, notes)


def _row(args: argparse.Namespace, figures: Figures, trial: str) -> list[str]:
    target = TRIALS[trial].target
    ratio = figures.ratio(trial, "cisfs", "gocryptfs")
    met = "" if ratio is None else "yes" if ratio <= target else "NO"
    servers = [name for name in args.systems if name != "plain"]
    return [
        trial,
        *(_number(figures.seconds(trial, name)) for name in args.systems),
        _number(ratio),
        f"<= {target}",
        met,
        _number(figures.ratio(trial, "cisfs", "plain")),
        *(_number(figures.server_cpu(trial, name)) for name in servers),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _record(args: argparse.Namespace, figures: Figures) -> dict[str, object]:
    """Everything measured, for a program to read: each sample, not only the medians."""
    trials = {
        trial: {
            system: {
                "seconds": [round(sample.seconds, 3) for sample in samples],
                "server_cpu": [round(sample.server_cpu, 2) for sample in samples],
            }
            for system, samples in figures.samples[trial].items()
        }
        for trial in args.only
    }
    peaks = {name: round(peak, 1) for name, peak in figures.peak_rss.items()}
    return {"facts": figures.facts, "trials": trials, "peak_rss_mib": peaks}


def _stop(number: int, _frame: object) -> NoReturn:
    """Turn a signal into an exit, so that every `finally` runs."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
