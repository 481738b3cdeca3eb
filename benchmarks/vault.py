"""The vault beside gocryptfs and a plain directory, in one run of interleaved rounds.

Each round sets every system up afresh and takes them through the same trials, group by group, in
an order that rotates.  Reports medians.  Needs root, to drop the kernel's caches.  One thread.

    python -m benchmarks.vault [--rounds N] [--quick] [--dir DIR] [--only TRIALS]
                               [--systems NAMES] [--no-save]
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

from benchmarks import command, facts, results, tree
from benchmarks.figures import NOTE, Figures
from benchmarks.systems import Cisfs, Gocryptfs, Plain, System
from benchmarks.trials import FIND, TAR, Trial, run

FULL = (1 << 30, 15_500)  # bytes of the large file, files of the tree
QUICK = (64 << 20, 1_500)
SYSTEMS: dict[str, type[System]] = {kind.name: kind for kind in (Plain, Gocryptfs, Cisfs)}

# A FUSE server is not told of sync -f, hence the second one.
COPY = 'cp -a "$TREE" "$VIEW/tree" && sync -f "$VIEW" && sync -f "$BACKING"'
GROUPS: list[list[Trial]] = [
    [
        Trial("write", 'dd if="$BIG" of="$VIEW/big" bs=1M conv=fsync'),
        Trial("read", 'dd if="$VIEW/big" of=/dev/null bs=1M', cold=True, after='rm "$VIEW/big"'),
    ],
    [Trial("copy", COPY)],
    [Trial("tar cold", TAR, cold=True), Trial("tar warm", TAR)],
    [Trial("find cold", FIND, cold=True), Trial("find warm", FIND)],
    [Trial("rm -rf", 'rm -rf "$VIEW/tree"', before='find "$VIEW/tree" -printf "%s"')],
]
TRIALS = [trial.name for group in GROUPS for trial in group]
_NEED_THE_TREE = {"tar cold", "tar warm", "find cold", "find warm", "rm -rf"}

LIKE_GOCRYPTFS = 1.0
NEAR_GOCRYPTFS = 1.3
TARGETS = {  # at most so many times gocryptfs's time
    "write": LIKE_GOCRYPTFS,
    "read": LIKE_GOCRYPTFS,
    "copy": NEAR_GOCRYPTFS,
    "tar cold": NEAR_GOCRYPTFS,
    "tar warm": LIKE_GOCRYPTFS,
    "find cold": NEAR_GOCRYPTFS,
    "find warm": NEAR_GOCRYPTFS,
    "rm -rf": NEAR_GOCRYPTFS,
}


def main() -> int:
    """Measure, print, append."""
    args = command.options("vault", __doc__.splitlines()[0], TRIALS, SYSTEMS).parse_args()

    def measure_and_report() -> None:
        with command.places(args.dir) as (work, memory):
            figures = _measure(args, work, memory)
        _report(args, figures)

    return command.run("vault", measure_and_report)


def _measure(args: argparse.Namespace, work: Path, memory: Path) -> Figures:
    """Run all rounds; `work` and `memory` are empty directories, deleted by the caller."""
    big, files = QUICK if args.quick else FULL
    sources = {"BIG": str(memory / "big"), "TREE": str(memory / "tree")}
    tree.generate_file(memory / "big", big)
    made = tree.generate(memory / "tree", files)
    figures = Figures()
    figures.facts["filesystem"] = facts.filesystem_of(work)
    figures.facts["large file"] = f"{big >> 20} MiB"
    figures.facts["tree"] = str(made)
    print(f"tree: {made}", flush=True)
    systems = [SYSTEMS[name](work) for name in args.systems]
    for number in range(args.rounds):
        turn = number % len(systems)
        _round(args.only, systems[turn:] + systems[:turn], sources, figures)
        print(f"round {number + 1} of {args.rounds} done", flush=True)
    return figures


def _needed(selected: set[str]) -> list[list[Trial]]:
    """Return the groups that must be run to measure the selected trials."""
    wanted = selected | ({"copy"} if selected & _NEED_THE_TREE else set())
    return [group for group in GROUPS if any(trial.name in wanted for trial in group)]


def _round(
    only: list[str], systems: list[System], sources: dict[str, str], figures: Figures
) -> None:
    """Set all systems up, take each group of trials through all of them, take them down."""
    with ExitStack() as stack:
        for system in systems:
            stack.callback(system.stop)
            system.start()
            figures.facts.update(system.details())
        for group in _needed(set(only)):
            for system in systems:
                for trial in group:
                    sample = run(trial, system, sources)
                    figures.add(trial.name, system.name, sample, system.usage())


def _report(args: argparse.Namespace, figures: Figures) -> None:
    text = _section(args, figures)
    print("\n" + text)
    if args.quick or args.no_save:
        return
    print("appended to", results.append_markdown("vault", text))
    print("appended to", results.append_json("vault", figures.record(args.only)))


def _section(args: argparse.Namespace, figures: Figures) -> str:
    header = ["trial", *(f"{name}, s" for name in args.systems)]
    header += ["cisfs/gocryptfs", "target", "met", "cisfs/plain"]
    servers = [name for name in args.systems if name != "plain"]
    header += [f"{name} CPU, s" for name in servers]
    table = results.markdown_table(header, [_row(args, figures, name) for name in args.only])
    told = dict(figures.facts)
    title = told.pop("date") + f", median of {args.rounds}"
    peaks = ", ".join(f"{name} {figures.peak_rss[name] / 2**20:.0f} MiB" for name in servers)
    notes = [NOTE, f"Peak resident size of the server: {peaks}."]
    return results.section(title, told, table, notes)


def _row(args: argparse.Namespace, figures: Figures, trial: str) -> list[str]:
    target = TARGETS[trial]
    ratio = figures.ratio(trial, "cisfs", "gocryptfs")
    met = "" if ratio is None else "yes" if ratio <= target else "NO"
    servers = [name for name in args.systems if name != "plain"]
    return [
        trial,
        *(results.number(figures.seconds(trial, name)) for name in args.systems),
        results.number(ratio),
        f"<= {target}",
        met,
        results.number(figures.ratio(trial, "cisfs", "plain")),
        *(results.number(figures.server_cpu(trial, name)) for name in servers),
    ]


if __name__ == "__main__":
    sys.exit(main())
