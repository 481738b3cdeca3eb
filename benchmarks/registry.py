"""From a registry to a container over a slow link: lazily, whole, by skopeo and by docker.

Each round takes every way to the first output of a container that reads 5 MB of a layer of 1 GiB,
then pushes and pulls the layer as a whole, beside skopeo with the same in plain and curl.  Both
ends of the link are on a machine that is made for it.  Reports medians.  Needs root.  One thread.

    python -m benchmarks.registry [--rounds N] [--quick] [--dir DIR] [--only TRIALS]
                                  [--systems NAMES] [--content KIND] [--size MIB] [--no-save]
"""

from __future__ import annotations

import argparse
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import command, content, facts, results, tree
from benchmarks.figures import Figures
from benchmarks.link import Link, registry
from benchmarks.published import Published, publish
from benchmarks.registry_report import Outcome
from benchmarks.servers import Usage
from benchmarks.starts import (
    DOCKER,
    DOCKER_LAZY,
    FIRST,
    FULL,
    LAZY,
    LINK,
    OCICRYPT,
    PLACES,
    PULL,
    PUSH,
    Host,
)
from benchmarks.trials import Sample
from tests.engines import daemons
from tests.engines.machine import Machine
from tests.engines.machine import machine as new_machine

QUICK = 64  # MiB
FILES = 15  # of the tree, for each MiB; it has less than a third of the bytes
CONTENT = {"incompressible": tree.incompressible, "software": content.software}
TRIALS: dict[str, list[str]] = {
    FIRST: [LAZY, DOCKER_LAZY, FULL, OCICRYPT, DOCKER],
    PUSH: [FULL, OCICRYPT],
    PULL: [FULL, OCICRYPT, LINK],
}
SYSTEMS = [LAZY, DOCKER_LAZY, FULL, OCICRYPT, DOCKER, LINK]


def main() -> int:
    """Measure, print, append."""
    parser = command.options("registry", __doc__.splitlines()[0], TRIALS, SYSTEMS)
    parser.add_argument(
        "--content", choices=list(CONTENT), default="incompressible", help="of the layer"
    )
    parser.add_argument(
        "--size", type=int, default=1024, metavar="MIB", help="of the layer (default: 1024)"
    )
    args = parser.parse_args()

    def measure_and_report() -> None:
        with command.places(args.dir) as (work, _):
            outcome = _measure(args, work)
        _report(args, outcome)

    return command.run("registry", measure_and_report)


def _measure(args: argparse.Namespace, work: Path) -> Outcome:
    """Run all rounds; `work` is an empty directory, deleted by the caller."""
    size = QUICK if args.quick else args.size
    figures = Figures()
    figures.facts |= _programs() | {
        "filesystem": facts.filesystem_of(work),
        "content": args.content,
    }
    received: dict[str, list[int]] = {}
    with _machine(work, figures.facts) as machine:
        link = Link(machine)
        with registry(machine):
            made = publish(machine, size << 20, FILES * size, CONTENT[args.content])
            figures.facts["application"] = made.files
            link.limit()
            host = Host(machine, link, made)
            for number in range(args.rounds):
                _round(args, number, host, figures, received)
                print(f"round {number + 1} of {args.rounds} done", flush=True)
            sizes = _sizes(made)
    return Outcome(figures, args.rounds, args.systems, args.only, sizes, received)


def _round(
    args: argparse.Namespace,
    number: int,
    host: Host,
    figures: Figures,
    received: dict[str, list[int]],
) -> None:
    for trial in args.only:
        systems = [name for name in TRIALS[trial] if name in args.systems]
        turn = number % max(len(systems), 1)
        for system in systems[turn:] + systems[:turn]:
            if trial == FIRST:
                seconds, bytes_so_far = host.start(system)
                received.setdefault(system, []).append(bytes_so_far)
            else:
                seconds = host.push(system) if trial == PUSH else host.pull(system)
            figures.add(trial, system, Sample(seconds, 0.0), Usage())


@contextmanager
def _machine(room: Path, told: dict[str, str]) -> Iterator[Machine]:
    """Yield a machine with docker, which keeps everything of weight in `room`."""
    with new_machine(room) as made:
        for name, path in PLACES.items():
            made.must("mkdir", "-p", made.room / name, path)
            made.must("mount", "--bind", made.room / name, path)
        made.must("chmod", "1777", "/var/tmp")
        _compile(made)
        daemons.configure_containerd(made)
        with daemons.containerd(made):
            daemons.configure_dockerd(made, daemons.CONTAINERD_SOCKET)
            with daemons.dockerd(made):
                version = made.must("docker", "version", "--format", "{{.Server.Version}}")
                told["docker"] = version.strip()
                configured = made.cisfs("runtime", "configure", "--engine", "docker")
                if configured.returncode:
                    raise RuntimeError(configured.stderr)
                yield made


def _compile(machine: Machine) -> None:
    """Have cisfs find itself compiled, as when it is installed; the checkout is left alone."""
    machine.environment["PYTHONPYCACHEPREFIX"] = str(machine.room / "pycache")
    packages = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    words = ["compileall", "-q", str(facts.CHECKOUT / "cisfs"), *sorted(packages)]
    machine.must(sys.executable, "-m", *words)
    del machine.environment["PYTHONDONTWRITEBYTECODE"]


def _programs() -> dict[str, str]:
    return {
        "skopeo": facts.first_line("skopeo", "--version").removeprefix("skopeo version "),
        "umoci": facts.first_line("umoci", "--version").removeprefix("umoci version "),
        "runc": facts.first_line("runc", "--version").removeprefix("runc version "),
        "registry": facts.first_line("docker-registry", "--version").split(" ")[-1],
    }


def _sizes(made: Published) -> dict[str, int]:
    """Return the bytes of the large blob that each of them moves."""
    return {FULL: made.sealed_size, OCICRYPT: made.plain_size, LINK: made.plain_size}


def _report(args: argparse.Namespace, outcome: Outcome) -> None:
    text = outcome.report()
    print("\n" + text)
    if args.quick or args.no_save:
        return
    print("appended to", results.append_markdown("registry", text))
    print("appended to", results.append_json("registry", outcome.record()))


if __name__ == "__main__":
    sys.exit(main())
