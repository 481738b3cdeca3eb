"""What was measured, and what is made of it: medians and ratios.

Knows nothing of how it was measured.  Not for concurrent use.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks import facts
from benchmarks.servers import Usage
from benchmarks.trials import Sample

NOTE = "Times are medians; ratios are medians of the rounds' own ratios, which noise moves less."


@dataclass
class Figures:
    """Everything measured: samples by trial and system, memory by system, facts."""

    samples: dict[str, dict[str, list[Sample]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    peak_rss: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    pss: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    facts: dict[str, str] = field(default_factory=facts.machine)

    def add(self, trial: str, system: str, sample: Sample, usage: Usage) -> None:
        """Take down a sample, and what the servers use after it."""
        self.samples[trial][system].append(sample)
        self.peak_rss[system] = max(self.peak_rss[system], usage.peak_rss)
        self.pss[system] = max(self.pss[system], usage.pss)
        print(f"  {trial:11} {system:18} {sample.seconds:8.3f} s", flush=True)

    def seconds(self, trial: str, system: str) -> float | None:
        """Return the median seconds of a trial on a system, if it was measured."""
        samples = self._of(trial, system)
        return median(sample.seconds for sample in samples) if samples else None

    def server_cpu(self, trial: str, system: str) -> float | None:
        """Return the median CPU seconds of a system's server during a trial."""
        samples = self._of(trial, system)
        return median(sample.server_cpu for sample in samples) if samples else None

    def ratio(self, trial: str, system: str, baseline: str) -> float | None:
        """Return one system's time as a multiple of another's, if both were measured."""
        ours, theirs = self._of(trial, system), self._of(trial, baseline)
        if not ours or not theirs:
            return None
        return ratio([sample.seconds for sample in ours], [sample.seconds for sample in theirs])

    def record(self, trials: Iterable[str]) -> dict[str, object]:
        """Return everything measured, for a program to read: each sample, not only the medians."""
        return {
            "facts": self.facts,
            "trials": {
                trial: {
                    system: {
                        "seconds": [round(sample.seconds, 5) for sample in samples],
                        "server_cpu": [round(sample.server_cpu, 3) for sample in samples],
                    }
                    for system, samples in self.samples.get(trial, {}).items()
                }
                for trial in trials
            },
            "peak_rss_mib": {name: round(peak / 2**20, 1) for name, peak in self.peak_rss.items()},
        }

    def _of(self, trial: str, system: str) -> list[Sample]:
        return self.samples.get(trial, {}).get(system, [])


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the rounds' ratios.

    What slows the machine for a while slows both in the same round, and cancels.  A system that is
    filled once has been in the first round only.
    """
    return median(our / their for our, their in zip(ours, theirs, strict=False))
