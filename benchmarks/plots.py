"""Draw the last run that a benchmark saved: bars on a logarithmic axis, beside a baseline.

Knows no more of the run than its record.  The same record and matplotlib give the same bytes.  One
thread.

    python -m benchmarks.plots sealed
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import results
from benchmarks.figures import ratio

# Colours of Okabe and Ito, which colour-blind readers can tell apart; the subject of the benchmark
# has shades of one.  On white, for readers of light and of dark pages alike.
COLOURS = {
    "plain": "#888888",
    "gocryptfs": "#e69f00",
    "vault": "#56b4e9",
    "fscrypt": "#cc79a7",
    "squashfs+gocryptfs": "#d55e00",
    "sealed-lz4": "#b5e0d2",
    "sealed-1-worker": "#73c9ae",
    "sealed": "#009e73",
}
WIDTH, DPI = 8.6, 100  # inches; a README is some 860 pixels wide
_BAR, _MARGIN = 0.165, 1.35  # inches of height
TICKS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
STYLE = {"font.size": 9, "figure.facecolor": "white", "axes.edgecolor": "#999999"}


@dataclass(frozen=True, slots=True)
class Plot:
    """One picture: what is drawn, relative to which system."""

    name: str
    title: str
    rows: Sequence[str]  # trials, or `stored` and a part
    baseline: str


PLOTS = {
    "sealed": [
        Plot(
            "tree",
            "Reading a tree of many files",
            ["tar cold", "tar warm", "find cold", "find warm"],
            "plain",
        ),
        Plot(
            "file",
            "Reading a large file",
            ["read cold", "read warm", "random cold", "random warm"],
            "plain",
        ),
        Plot(
            "cost",
            "Storing, mounting, and disk space",
            ["store tree", "store file", "mount", "stored tree", "stored file"],
            "gocryptfs",
        ),
    ],
}
Record = Mapping[str, Any]  # as Outcome.record makes it
Axes = Any  # matplotlib's: scripts/check types this module where matplotlib is not installed


def draw(benchmark: str) -> list[Path]:
    """Draw the last saved run of a benchmark, and return the pictures' paths."""
    lines = (results.DIRECTORY / f"{benchmark}.jsonl").read_text().splitlines()
    record = json.loads(lines[-1])
    content = record["facts"]["content"]
    prefix = benchmark if content == "incompressible" else f"{benchmark}-{content}"
    pictures = []
    for plot in PLOTS[benchmark]:
        if rows := {row: bars for row in plot.rows if (bars := ratios(record, row, plot.baseline))}:
            path = results.DIRECTORY / f"{prefix}-{plot.name}.png"
            _draw(plot, record, rows, path)
            results.hand_over(path)
            pictures.append(path)
    return pictures


def amounts(record: Record, row: str) -> dict[str, list[float]]:
    """Return what was measured for a row of a plot: by system, seconds of each round, or bytes."""
    if row.startswith("stored "):
        stored = record["stored_bytes"].get(row.removeprefix("stored "), {})
        return {system: [float(size)] for system, size in stored.items()}
    trial = record["trials"].get(row, {})
    return {system: measured["seconds"] for system, measured in trial.items()}


def ratios(record: Record, row: str, baseline: str) -> dict[str, float]:
    """Return a row's bars: by system, the multiple of the baseline."""
    measured = amounts(record, row)
    base = measured.pop(baseline, None)
    return {system: ratio(each, base) for system, each in measured.items()} if base else {}


def _draw(plot: Plot, record: Record, rows: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw one picture: a group of bars for each row, from the baseline to the multiple of it."""
    groups = list(rows.values())
    systems = [name for name in COLOURS if any(name in group for group in groups)]
    slots = len(systems) + 1  # of a group; one stays empty
    pyplot = importlib.import_module("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    with pyplot.rc_context({**importlib.import_module("matplotlib").rcParamsDefault, **STYLE}):
        height = _MARGIN + _BAR * slots * len(groups)
        figure, axes = pyplot.subplots(figsize=(WIDTH, height), layout="constrained")
        for place, system in enumerate(systems):
            bars = [
                (number * slots + place, group[system])
                for number, group in enumerate(groups)
                if system in group
            ]
            _bars(axes, bars, system)
        middles = [number * slots + (len(systems) - 1) / 2 for number in range(len(groups))]
        axes.set_yticks(middles, [_label(record, row, plot.baseline) for row in rows])
        _scale(axes, [multiple for group in groups for multiple in group.values()])
        axes.axvline(1, color=COLOURS[plot.baseline], linewidth=2)
        axes.set_xlabel(f"multiple of {plot.baseline} (the line at 1), logarithmic; less is better")
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.1, 1.0), ncols=3, frameon=False, borderpad=0.2
        )
        figure.suptitle(_title(plot, record))
        figure.savefig(path, dpi=DPI, metadata={"Software": None})
        pyplot.close(figure)


def _bars(axes: Axes, bars: Sequence[tuple[float, float]], system: str) -> None:
    """Draw one system's bars, (place, multiple), and write the multiples beside them."""
    places, multiples = [place for place, _ in bars], [multiple for _, multiple in bars]
    lengths = [multiple - 1 for multiple in multiples]
    axes.barh(places, lengths, left=1, height=0.85, color=COLOURS[system], label=system)
    for place, multiple in bars:
        axes.annotate(
            f"{multiple:.2f}" if multiple < 10 else f"{multiple:.0f}",
            (multiple, place),
            xytext=(3 if multiple >= 1 else -3, 0),
            textcoords="offset points",
            horizontalalignment="left" if multiple >= 1 else "right",
            verticalalignment="center",
            fontweight="bold" if system == "sealed" else "normal",
        )


def _scale(axes: Axes, multiples: Sequence[float]) -> None:
    """Lay out both axes: first row on top; room for the numbers at the ends of the bars."""
    axes.set_xscale("log")
    low, high = min([*multiples, 0.8]) / 1.5, max([*multiples, 1.25]) * 1.5
    axes.set_xlim(low, high)
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.invert_yaxis()
    axes.grid(visible=True, axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _label(record: Record, row: str, baseline: str) -> str:
    """Name a row, and say what the baseline measured."""
    base = amounts(record, row).get(baseline)
    if not base:
        return row
    stored = row.startswith("stored ")
    told = f"{base[0] / 1e6:.0f} MB" if stored else f"{median(base):.3g} s"
    return f"{row}\n{baseline}: {told}"


def _title(plot: Plot, record: Record) -> str:
    facts = record["facts"]
    return f"{plot.title}, {facts['content']}; {facts['date']}"


def main() -> int:
    """Draw what is asked for."""
    parser = argparse.ArgumentParser(prog="benchmarks.plots", description=__doc__.splitlines()[0])
    parser.add_argument("benchmark", choices=list(PLOTS))
    for path in draw(parser.parse_args().benchmark):
        print("drew", path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
