"""A run of the benchmark of registries, told: tables, targets and its record.

Knows nothing of how it was measured.  Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.figures import NOTE, Figures
from benchmarks.link import BANDWIDTH
from benchmarks.results import markdown_table, number, section
from benchmarks.starts import FIRST, FULL, LAZY, LINK, OCICRYPT, PULL, PUSH

SOONER = 10.0  # times, than skopeo
SHARE = 0.9  # of the link's rate or of skopeo's, whichever is less

NOTES = [
    NOTE,
    f"The link passes {8 * BANDWIDTH // 10**6} Mbit/s each way, headers of packets included (tc "
    "tbf), and has no delay; the registry speaks TLS and keeps everything in memory.",
    "first output: from nothing of the image on the machine and nothing in the kernel's caches, "
    "programs included, to the first line of a container that reads 5 MB of the layer: some "
    "directories' files, and 1 MB or so of the large one. lazy: cisfs run docker://IMAGE. "
    "docker+lazy: docker run --runtime=cisfs IMAGE, the layer being unlocked. cisfs: cisfs pull, "
    "then cisfs run. skopeo: skopeo copy --decryption-key, umoci raw unpack, runc run. docker: "
    "docker run of the image in plain. All but the last open what is encrypted with one RSA key.",
    "push, pull: the layer as a whole, to or from the disk, with sync: cisfs push and pull, skopeo "
    "copy of the same in plain, its layer being compressed already, and curl of that layer.",
]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a report is made of: the figures, and bytes moved (or received so far) by system."""

    figures: Figures
    rounds: int
    systems: Sequence[str]
    trials: Sequence[str]
    sizes: Mapping[str, int]
    received: Mapping[str, Sequence[int]]

    def record(self) -> dict[str, object]:
        """Return everything measured, for a program to read."""
        return {
            **self.figures.record(self.trials),
            "bandwidth": BANDWIDTH,
            "blob_bytes": self.sizes,
            "received_until_first_output": self.received,
        }

    def report(self) -> str:
        """Return the run as a Markdown section."""
        told = dict(self.figures.facts)
        title = told.pop("date") + f", median of {self.rounds}"
        return section(title, told, self._table(), [*NOTES, *self._targets()])

    def _table(self) -> str:
        rows = [
            [f"{trial}, s", *(number(self.figures.seconds(trial, name)) for name in self.systems)]
            for trial in self.trials
        ]
        if FIRST in self.trials:
            cells = (self.received.get(name) for name in self.systems)
            megabytes = (median(cell) / 1e6 if cell else None for cell in cells)
            rows.append(["received until then, MB", *(number(cell, 1) for cell in megabytes)])
            cells_of = (self.figures.ratio(FIRST, name, LAZY) for name in self.systems)
            rows.append(["times lazy's", *(number(cell, 1) for cell in cells_of)])
        if {PUSH, PULL} & set(self.trials):
            moved = (self.sizes.get(name, 0) / 1e6 or None for name in self.systems)
            rows.append(["layer as it travels, MB", *(number(size, 1) for size in moved)])
        for trial in (PUSH, PULL):
            if trial in self.trials:
                rates = (self._rate(trial, name) for name in self.systems)
                rows.append([f"{trial}, MB/s", *(number(rate, 1) for rate in rates)])
        return markdown_table(["trial", *self.systems], rows)

    def _rate(self, trial: str, name: str) -> float | None:
        """Return the bytes of the layer's blob a second, in MB."""
        seconds = self.figures.seconds(trial, name)
        return self.sizes[name] / seconds / 1e6 if seconds and name in self.sizes else None

    def _targets(self) -> list[str]:
        rows = []
        sooner = self.figures.ratio(FIRST, OCICRYPT, LAZY)
        if sooner is not None:
            label = f"{FIRST}, {OCICRYPT}/{LAZY}"
            rows.append([label, number(sooner), f">= {SOONER:.0f}", _met(sooner >= SOONER)])
        rows += [row for trial in (PUSH, PULL) if (row := self._share(trial)) is not None]
        return [markdown_table(["target", "measured", "bound", "met"], rows)] if rows else []

    def _share(self, trial: str) -> list[str] | None:
        """Return the row of our rate as a share of the link's or of skopeo's."""
        ours, skopeos = self._rate(trial, FULL), self._rate(trial, OCICRYPT)
        if ours is None:
            return None
        peers = {"link": BANDWIDTH / 1e6, LINK: self._rate(PULL, LINK), OCICRYPT: skopeos}
        shares = {name: ours / rate for name, rate in peers.items() if rate}
        told = ", ".join(f"{share:.2f} of {name}" for name, share in shares.items())
        met = max(shares[name] for name in ("link", OCICRYPT) if name in shares) >= SHARE
        return [f"{trial}, rate of cisfs", told, f">= {SHARE} of link or {OCICRYPT}", _met(met)]


def _met(truth: bool) -> str:
    return "yes" if truth else "NO"
