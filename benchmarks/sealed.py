"""Sealed layers beside what else keeps a read-only tree private, in one run of interleaved rounds.

Each round fills every system afresh (the vault once: that takes too long) with a tree and a large
file, mounts it read-only, and takes all through the same trials, group by group, in an order that
rotates.  Reports medians and draws them.  Needs root, to drop the kernel's caches and to mount.
One thread.

    python -m benchmarks.sealed [--rounds N] [--quick] [--dir DIR] [--only TRIALS]
                                [--systems NAMES] [--content KIND] [--no-save]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks import command, content, facts, plots, results, tree
from benchmarks.figures import Figures
from benchmarks.fscrypt import Fscrypt
from benchmarks.layers import Sealed, SealedLz4, SealedOneWorker, SquashfsOverGocryptfs
from benchmarks.sealed_report import Outcome
from benchmarks.sealed_trials import COLD, FILE_TRIALS, GROUPS, MOUNT, STORE, TRIALS
from benchmarks.systems import PARTS, Plain, QuickGocryptfs, System, Vault
from benchmarks.trials import Sample, Trial, run, settle

FULL = (1 << 30, 15_500, 8_000)  # bytes of the large file, files of the tree, random reads
QUICK = (64 << 20, 1_500, 1_000)
CONTENT = {"incompressible": tree.incompressible, "software": content.software}
SYSTEMS: dict[str, type[System]] = {
    kind.name: kind
    for kind in (
        Plain,
        QuickGocryptfs,
        Vault,
        Fscrypt,
        SquashfsOverGocryptfs,
        SealedLz4,
        SealedOneWorker,
        Sealed,
    )
}


@dataclass
class Run:
    """One run: what is measured, on what, and what came of it."""

    only: set[str]
    systems: list[System]
    sources: dict[str, str]
    first_file: Path  # a file of the tree, relative to `view`: read to see that a mount is there
    figures: Figures
    stored: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))

    def __post_init__(self) -> None:
        needed = {"tree": self.only - FILE_TRIALS, "file": self.only & FILE_TRIALS}
        self._parts = [part for part in PARTS if needed[part]]

    def rounds(self, count: int) -> None:
        """Run so many, and leave nothing of the systems behind, however it ends."""
        drops = facts.cache_drops()
        with ExitStack() as stack:
            for system in self.systems:
                stack.callback(system.stop)
            for number in range(count):
                turn = number % len(self.systems)
                self._round(self.systems[turn:] + self.systems[:turn], first=number == 0)
                print(f"round {number + 1} of {count} done", flush=True)
        ours = sum(
            len(samples) for name in COLD for samples in self.figures.samples.get(name, {}).values()
        )
        if foreign := facts.cache_drops() - drops - ours:
            told = f"{foreign} times by others: do not trust the warm trials"
            self.figures.facts["caches dropped"] = told

    def _round(self, systems: list[System], *, first: bool) -> None:
        self._fill([system for system in systems if first or not system.filled_once])
        for system in systems:
            self.figures.facts.update(system.details())
            system.mount(self._parts)
        for group in GROUPS:
            self._read([trial for trial in group if trial.name in self.only], systems)
        for system in systems:
            if MOUNT in self.only and not isinstance(system, Plain):
                self._add(MOUNT, system, self._mount(system))
            system.unmount()

    def _fill(self, systems: list[System]) -> None:
        for system in systems:
            system.stop()
            system.start()
        for part in self._parts:
            for system in systems:
                self._store(system, part)

    def _read(self, group: list[Trial], systems: list[System]) -> None:
        for system in systems:
            for trial in group:
                self._add(trial.name, system, run(trial, system, self.sources))

    def _store(self, system: System, part: str) -> None:
        trial = replace(STORE[part], command=system.store_command(part))
        self._add(trial.name, system, run(trial, system, self.sources))
        earlier = self._parts[: self._parts.index(part)]
        before = sum(self.stored[each][system.name] for each in earlier)
        self.stored[part][system.name] = system.stored() - before

    def _mount(self, system: System) -> Sample:
        """Time the way from nothing mounted and nothing cached to the first byte of a file."""
        system.unmount()
        settle(cold=True)
        start = time.perf_counter()
        system.mount(["tree"])
        with (system.view / self.first_file).open("rb", buffering=0) as file:
            file.read(1)
        return Sample(time.perf_counter() - start, system.usage().cpu)

    def _add(self, trial: str, system: System, sample: Sample) -> None:
        self.figures.add(trial, system.name, sample, system.usage())


def main() -> int:
    """Measure, print, append, draw."""
    parser = command.options("sealed", __doc__.splitlines()[0], TRIALS, SYSTEMS)
    parser.add_argument(
        "--content",
        choices=list(CONTENT),
        default="incompressible",
        help="of what is stored; compressed layers are measured with software only, unless named",
    )
    parser.set_defaults(systems=[])
    args = parser.parse_args()
    if not args.systems:
        pointless = set() if args.content == "software" else {SealedLz4.name}
        args.systems = [name for name in SYSTEMS if name not in pointless]

    def measure_and_report() -> None:
        with command.places(args.dir) as (work, memory):
            outcome = _measure(args, work, memory)
        _report(args, outcome)

    return command.run("sealed", measure_and_report)


def _measure(args: argparse.Namespace, work: Path, memory: Path) -> Outcome:
    """Run all rounds; `work` and `memory` are empty directories, deleted by the caller."""
    # cisfs is to find itself compiled, as when it is installed, but to leave the checkout alone.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(work / "pycache")
    size, files, reads = QUICK if args.quick else FULL
    root, large = memory / "tree", memory / "file" / "big"
    made = tree.generate(root, files, CONTENT[args.content])
    large.parent.mkdir()
    tree.generate_file(large, size, CONTENT[args.content])
    sources = {"TREE": str(root), "FILE": str(large.parent), "READS": str(reads)}
    first_file = next(
        path for path in sorted(root.iterdir()) if path.is_file() and path.stat().st_size
    )
    figures = Figures()
    figures.facts |= {
        "filesystem": facts.filesystem_of(work),
        "content": args.content,
        "tree": str(made),
        "large file": f"{size >> 20} MiB",
        "random reads": str(reads),
        "fio": facts.first_line("fio", "--version").removeprefix("fio-"),
    }
    print(f"tree: {made}, {args.content}", flush=True)
    systems = []
    for name in args.systems:
        if lacking := SYSTEMS[name].lacks():
            print(f"{name}: left out, as this machine lacks {lacking}", flush=True)
            figures.facts[f"left out: {name}, for want of"] = lacking
        else:
            systems.append(SYSTEMS[name](work))
    if not systems:
        raise RuntimeError("nothing is left to measure")
    only = set(args.only)
    measured = Run(only, systems, sources, first_file.relative_to(memory), figures)
    measured.rounds(args.rounds)
    names = [system.name for system in systems]
    given = {"tree": made.content, "file": size}
    return Outcome(figures, args.rounds, names, given, measured.stored)


def _report(args: argparse.Namespace, outcome: Outcome) -> None:
    text = outcome.report()
    print("\n" + text)
    if args.quick or args.no_save:
        return
    print("appended to", results.append_markdown("sealed", text))
    print("appended to", results.append_json("sealed", outcome.record()))
    for path in plots.draw("sealed"):
        print("drew", path)


if __name__ == "__main__":
    sys.exit(main())
