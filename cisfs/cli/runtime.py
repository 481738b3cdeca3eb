"""`cisfs runtime`: tell an engine of the runtime cisfs-runtime.

Parses, calls `cisfs.runtime.configure` and reports.  One call per process.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cisfs.runtime.configure.engines import Outcome, Wanted

HELP = "make docker, containerd or podman know the runtime cisfs"

ENGINES = ("docker", "containerd", "podman")

_EPILOG = """\
configure adds the runtime to the engine's configuration and keeps everything else that is in it;
unconfigure takes it out again.  Done twice, either changes nothing more.  Before a file is changed,
a copy of it is made beside it, FILE.DATE.cisfs-backup.

  docker      /etc/docker/daemon.json; dockerd reads it at once, and no container is restarted
  containerd  /etc/containerd/config.toml, version 2 or 3; restart containerd afterwards, which ends
              no container.  The RuntimeClass for Kubernetes is printed on standard output
  podman      /etc/containers/containers.conf.d/50-cisfs.conf

examples:
  cisfs runtime configure --engine docker --dry-run
  cisfs runtime configure --engine docker
  docker run --runtime cisfs -e CISFS_LAYERS=private busybox ls /
  cisfs runtime configure --engine containerd | kubectl apply -f -
  cisfs runtime unconfigure --engine podman
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "action", metavar="ACTION", choices=("configure", "unconfigure"), help="see below"
    )
    parser.add_argument(
        "--engine", choices=ENGINES, required=True, help="whose configuration it is"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would change, and change nothing"
    )
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="the configuration, if it is another file"
    )
    parser.add_argument(
        "--runtime-path",
        metavar="PATH",
        type=Path,
        help="the runtime (default: the cisfs-runtime that belongs to this command)",
    )
    parser.add_argument(
        "--pid-file",
        metavar="FILE",
        type=Path,
        help="dockerd's, if its configuration names none (default: /var/run/docker.pid)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace or remove a runtime of the name cisfs that has another path",
    )


def run(args: argparse.Namespace) -> int:
    """Change the configuration; return 0."""
    from cisfs.runtime.configure import containerd, docker, engines

    wanted = engines.Wanted(
        engine=args.engine,
        undo=args.action == "unconfigure",
        config=args.config,
        runtime=args.runtime_path,
        pid_file=args.pid_file or docker.PID_FILE,
        force=args.force,
        dry_run=args.dry_run,
    )
    outcome = engines.carry_out(wanted)
    if wanted.dry_run and outcome.edit.is_needed:
        sys.stdout.write(outcome.edit.diff())
        return 0
    manifest = wanted.engine == "containerd" and not (wanted.undo or wanted.dry_run)
    for line in _report(wanted, outcome):
        print(line, file=sys.stderr if manifest else sys.stdout)
    if manifest:
        sys.stdout.write(containerd.RUNTIME_CLASS)
    return 0


def _report(wanted: Wanted, outcome: Outcome) -> list[str]:
    path, done = outcome.edit.path, f"{'un' if wanted.undo else ''}configured"
    if not outcome.edit.is_needed:
        there = "has no runtime cisfs" if wanted.undo else "has the runtime cisfs already"
        return [f"{path} {there}; nothing was changed"]
    lines = [f"{done} {wanted.engine} in {path}"]
    if outcome.backup is not None:
        lines.append(f"as it was before: {outcome.backup}")
    return [*lines, outcome.note] if outcome.note else lines
