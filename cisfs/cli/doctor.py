"""`cisfs doctor`: what this host can do, and what to do about the rest.

Parses, calls `cisfs.runtime.doctor`, prints.  One call per process.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cisfs.runtime.doctor.finding import Finding

HELP = "examine whether containers can run here"

_EPILOG = """\
As root, what containers take is tried out in small: layers are made and mounted, changed in an
overlay, and taken away, all of it in namespaces that nobody else sees.  Nothing is left behind, and
no configuration is changed.

A warning means that something will be missing or weaker, a failure that no container will run.

exit status: 0 when containers can run here, 1 when they cannot.

examples:
  cisfs doctor
  cisfs doctor --json | jq '.[] | select(.level != "ok")'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Examine; return 0, or CisfsError's exit code if anything failed."""
    from cisfs.errors import CisfsError
    from cisfs.runtime.doctor.examination import examine
    from cisfs.runtime.doctor.finding import Level

    findings = list(examine()) if args.json else _printed(examine())
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    failed = any(finding.level is Level.FAILURE for finding in findings)
    return CisfsError.exit_code if failed else 0


def _printed(findings: Iterable[Finding]) -> list[Finding]:
    """Print each finding as it comes; return them all."""
    seen = []
    for finding in findings:
        print(f"{finding.level:<8} {finding.name}: {finding.found}", flush=True)
        if finding.remedy:
            print(f"{'':<8} -> {finding.remedy}", flush=True)
        seen.append(finding)
    return seen
