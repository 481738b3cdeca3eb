"""A run of the benchmark of sealed layers, told: tables, targets and its record.

Knows nothing of how it was measured.  Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.figures import NOTE, Figures
from benchmarks.results import markdown_table, number, section

# At most so many times as long as another system.
RATIO_TARGETS = [
    ("tar cold", "plain", 1.0),
    ("tar warm", "plain", 1.1),
    ("find cold", "plain", 1.0),
    ("find warm", "plain", 1.1),
    ("tar cold", "gocryptfs", 1 / 3),
    ("tar warm", "gocryptfs", 1 / 10),
    ("read cold", "gocryptfs", 1.0),
    ("read warm", "gocryptfs", 1.0),
]
SEAL_RATE = 300.0  # MB/s of input, at least
PSS = 60.0  # MB for a worker, less than

NOTES = [
    NOTE,
    "Cold: after sync and drop_caches, for what lies below as well; what a server holds in its "
    "own memory stays. Warm: up to five times, until a second is over; the median counts. "
    "Random: the time spent in fio's reads of 4 KiB, one after the other. Mount: from nothing "
    "mounted and nothing cached, programs included, to the first byte of a file. No key is derived "
    "slowly: gocryptfs has a scrypt N of 2^10, the others have the key in a file. Store: from "
    "memory, with cp -a, mksquashfs or cisfs seal, and sync. Before each trial but the warm ones "
    "3 GiB of memory are touched and freed, so that none has to wait for a hypervisor's.",
    "CPU seconds of the servers; when storing, of the commands, too. What the kernel encrypts is "
    "not in them.",
    "PSS is the proportional set size of the largest process of a server, at the end of any trial; "
    "pages of Python are shared with the other systems that are written in it.",
]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a report is made of: the figures, and bytes by part (and system)."""

    figures: Figures
    rounds: int
    systems: Sequence[str]
    given: Mapping[str, int]
    stored: Mapping[str, Mapping[str, int]]

    def record(self) -> dict[str, object]:
        """Return everything measured, for a program to read."""
        return {
            **self.figures.record(self.figures.samples),
            "pss_mb": {name: round(size / 1e6, 1) for name, size in self.figures.pss.items()},
            "given_bytes": self.given,
            "stored_bytes": self.stored,
        }

    def report(self) -> str:
        """Return the run as a Markdown section."""
        told = dict(self.figures.facts)
        title = told.pop("date") + f", median of {self.rounds}"
        cpu, pss = NOTES[2:]
        notes = [*NOTES[:2], self._cpu(), cpu, self._sizes(), pss, *self._targets()]
        return section(title, told, self._times(), notes)

    def _times(self) -> str:
        header = ["trial", *(f"{name}, s" for name in self.systems)]
        rows = [
            [
                trial,
                *(number(self.figures.seconds(trial, name), 3) for name in self.systems),
                number(self.figures.ratio(trial, "sealed", "plain")),
                number(self.figures.ratio(trial, "sealed", "gocryptfs")),
            ]
            for trial in self.figures.samples
        ]
        return markdown_table([*header, "sealed/plain", "sealed/gocryptfs"], rows)

    def _cpu(self) -> str:
        rows = [
            [trial, *(number(self.figures.server_cpu(trial, name)) for name in self.systems)]
            for trial in self.figures.samples
        ]
        return markdown_table(["CPU, s", *self.systems], rows)

    def _sizes(self) -> str:
        """Return the table of throughput, of disk and of memory."""
        rows = []
        for part in self.stored:
            rates = (self._rate(part, name) for name in self.systems)
            rows.append([f"store {part}, MB/s of input", *(number(rate, 0) for rate in rates)])
        for part, sizes in self.stored.items():
            taken = (sizes[name] / 1e6 for name in self.systems)
            rows.append([f"{part} on disk, MB", *(number(size, 0) for size in taken)])
        memory = {
            "largest process (PSS), MB": self.figures.pss,
            "peaks of all processes (RSS), MB": self.figures.peak_rss,
        }
        for label, sizes in memory.items():
            used = (sizes[name] / 1e6 or None for name in self.systems)
            rows.append([label, *(number(size, 0) for size in used)])
        return markdown_table(["size", *self.systems], rows)

    def _targets(self) -> list[str]:
        """Return the table of what sealed layers are to reach, if anything of it was measured."""
        rows = []
        for trial, baseline, bound in RATIO_TARGETS:
            ratio = self.figures.ratio(trial, "sealed", baseline)
            if ratio is not None:
                label = f"{trial}, sealed/{baseline}"
                rows.append([label, number(ratio), f"<= {bound:.2f}", _met(ratio <= bound)])
        for part in self.given:
            rate = self._rate(part, "sealed")
            if rate is not None:
                label = f"store {part}, MB/s of input"
                rows.append(
                    [label, number(rate, 0), f">= {SEAL_RATE:.0f}", _met(rate >= SEAL_RATE)]
                )
        for name in ("sealed-1-worker", "sealed"):
            if size := self.figures.pss.get(name):
                label = f"largest process (PSS) of {name}, MB"
                row = [label, number(size / 1e6, 0), f"< {PSS:.0f}", _met(size / 1e6 < PSS)]
                rows.append(row)
        return [markdown_table(["target", "measured", "bound", "met"], rows)] if rows else []

    def _rate(self, part: str, system: str) -> float | None:
        seconds = self.figures.seconds(f"store {part}", system)
        return self.given[part] / seconds / 1e6 if seconds else None


def _met(truth: bool) -> str:
    return "yes" if truth else "NO"
