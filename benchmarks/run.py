"""Containers over encrypted layers and scratches beside plain ones, in rounds of one run.

Each round starts a container of every system afresh and takes them through the same trials, group
by group, in an order that rotates; then fifty containers are started on one layer at once.  docker
runs on a machine of its own that is made for it.  Reports medians.  Needs root.  One thread, but
for the starting of fifty.

    python -m benchmarks.run [--rounds N] [--quick] [--dir DIR] [--only TRIALS] [--systems NAMES]
                             [--no-save]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks import command, facts, results, tree
from benchmarks.containers import Box, CisfsBox, GocryptfsBox, PlainBox, root_filesystem
from benchmarks.engines import DockerBox, DockerWithCisfs, docker_machine
from benchmarks.figures import NOTE, Figures
from benchmarks.servers import Usage, usage_of
from benchmarks.trials import Sample, Trial, run, settle

FULL = (1 << 30, 15_500)  # bytes of the large file, files of the tree
QUICK = (64 << 20, 1_500)
SYSTEMS: dict[str, type[Box]] = {kind.name: kind for kind in (PlainBox, GocryptfsBox, CisfsBox)}
DOCKERS: dict[str, type[DockerBox]] = {kind.name: kind for kind in (DockerBox, DockerWithCisfs)}

TRUE, DOCKER_TRUE, COPY, WRITE, MANY = "true", "docker true", "copy", "write", "fifty"
SCRIPTS = {
    COPY: "cp -a /source/tree /target/tree && sync",
    WRITE: "dd if=/source/big of=/target/big bs=1M conv=fsync && sync",
}
TRIALS = [TRUE, DOCKER_TRUE, COPY, WRITE, MANY]
CONTAINERS, AT_ONCE = 50, 4
TRUES = 9  # in each round

MORE_SECONDS = 0.25  # for /bin/true, at most so many more than the plain one
NOTES = [
    NOTE,
    "true: from the start of `run` to its end, /bin/true in a container. copy: cp -a of the tree "
    "from memory, then sync in the container and twice on the host, which writes back everything "
    "that is below it. write: dd with conv=fsync, and the same. fifty: until fifty containers on "
    f"one layer run, {AT_ONCE} being started at a time.",
]


def main() -> int:
    """Measure, print, append."""
    names = [*SYSTEMS, *DOCKERS]
    args = command.options("run", __doc__.splitlines()[0], TRIALS, names).parse_args()

    def measure_and_report() -> None:
        with command.places(args.dir) as (work, memory):
            figures, memory_each = _measure(args, work, memory)
        _report(args, figures, memory_each)

    return command.run("run", measure_and_report)


def _measure(args: argparse.Namespace, work: Path, memory: Path) -> tuple[Figures, float | None]:
    """Run all; returns the figures, and the bytes of memory for each of fifty containers."""
    big, files = QUICK if args.quick else FULL
    rootfs, source = work / "rootfs", memory / "source"
    root_filesystem(rootfs)
    source.mkdir()
    made = tree.generate(source / "tree", files)
    tree.generate_file(source / "big", big)
    figures = Figures()
    figures.facts |= {
        "filesystem": facts.filesystem_of(work),
        "large file": f"{big >> 20} MiB",
        "tree": str(made),
        "runc": facts.first_line("runc", "--version").removeprefix("runc version "),
    }
    boxes = [SYSTEMS[name](work, rootfs, source) for name in args.systems if name in SYSTEMS]
    for number in range(args.rounds):
        turn = number % max(len(boxes), 1)
        _round(set(args.only), boxes[turn:] + boxes[:turn], figures)
        print(f"round {number + 1} of {args.rounds} done", flush=True)
    if DOCKER_TRUE in args.only:
        _measure_docker(args, figures)
    return figures, _start_many(boxes, figures) if MANY in args.only else None


def _round(only: set[str], boxes: list[Box], figures: Figures) -> None:
    with _started(boxes):
        for box in boxes:
            if TRUE in only and not isinstance(box, GocryptfsBox):
                _time_true(TRUE, box, figures)
        for name in (COPY, WRITE):
            for box in boxes if name in only else []:
                trial = Trial(name, box.exec_command(SCRIPTS[name]))
                figures.add(name, box.name, run(trial, box, {}), box.usage())


def _measure_docker(args: argparse.Namespace, figures: Figures) -> None:
    with docker_machine(figures.facts) as machine:
        kinds = [DOCKERS[name](machine) for name in args.systems if name in DOCKERS]
        for _ in range(args.rounds):
            for kind in kinds:
                _time_true(DOCKER_TRUE, kind, figures)


def _time_true(name: str, box: Box | DockerBox, figures: Figures) -> None:
    """Run /bin/true several times; each counts."""
    trial = Trial(name, box.run_command())
    for _ in range(TRUES):
        figures.add(name, box.name, run(replace(trial), box, {}), box.usage())


def _start_many(boxes: list[Box], figures: Figures) -> float | None:
    """Start fifty of each; returns the memory that each of ours takes."""
    each = None
    for box in boxes:
        if isinstance(box, GocryptfsBox):
            continue
        with _started([box]):
            before = _memory(box)
            settle(cold=False)
            start = time.perf_counter()
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(box.start_one, [f"box{number}" for number in range(CONTAINERS)]))
            figures.add(MANY, box.name, Sample(time.perf_counter() - start, 0.0), Usage())
            if isinstance(box, CisfsBox):
                each = (_memory(box) - before) / CONTAINERS
    return each


def _memory(box: Box) -> int:
    """Return the proportional set sizes of all that serves the containers, in bytes."""
    return sum(usage_of(pid).pss for pid in box.servers()) if isinstance(box, CisfsBox) else 0


@contextmanager
def _started(boxes: list[Box]) -> Iterator[None]:
    with ExitStack() as stack:
        for box in boxes:
            stack.callback(box.stop)
            box.start()
        yield


def _report(args: argparse.Namespace, figures: Figures, memory_each: float | None) -> None:
    text = _section(args, figures, memory_each)
    print("\n" + text)
    if args.quick or args.no_save:
        return
    print("appended to", results.append_markdown("run", text))
    record = figures.record(args.only) | {"memory_each": memory_each}
    print("appended to", results.append_json("run", record))


def _section(args: argparse.Namespace, figures: Figures, memory_each: float | None) -> str:
    header = ["trial", *(f"{name}, s" for name in args.systems)]
    rows = [
        [trial, *(results.number(figures.seconds(trial, name), 3) for name in args.systems)]
        for trial in figures.samples
    ]
    told = dict(figures.facts)
    title = told.pop("date") + f", median of {args.rounds}"
    notes = [
        *NOTES,
        results.markdown_table(["target", "measured", "bound", "met"], _targets(figures)),
    ]
    if memory_each is not None:
        notes.append(
            f"Memory of the servers of each of {CONTAINERS} containers (proportional set size): "
            f"{memory_each / 1e6:.1f} MB."
        )
    return results.section(title, told, results.markdown_table(header, rows), notes)


def _targets(figures: Figures) -> list[list[str]]:
    rows = []
    for trial, ours, plain in (
        (TRUE, CisfsBox.name, PlainBox.name),
        (DOCKER_TRUE, DockerWithCisfs.name, DockerBox.name),
    ):
        with_layers, without = figures.seconds(trial, ours), figures.seconds(trial, plain)
        if with_layers is not None and without is not None:
            more = with_layers - without
            label = f"{trial}, {ours} less {plain}, s"
            rows.append(_row(label, more, MORE_SECONDS))
    for trial, peer, bound in (
        (COPY, GocryptfsBox.name, 1 / 3),
        (COPY, PlainBox.name, 2.5),
        (WRITE, GocryptfsBox.name, 1.0),
    ):
        ratio = figures.ratio(trial, CisfsBox.name, peer)
        if ratio is not None:
            rows.append(_row(f"{trial}, {CisfsBox.name}/{peer}", ratio, bound))
    return rows


def _row(label: str, measured: float, bound: float) -> list[str]:
    met = "yes" if measured <= bound else "NO"
    return [label, results.number(measured), f"<= {bound:.2f}", met]


if __name__ == "__main__":
    sys.exit(main())
