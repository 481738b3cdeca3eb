"""The podman engine: `cisfs run` becomes the `podman run` that does the same.

Makes the argument vector and replaces this process; podman does the rest.  One call per process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn

from cisfs.errors import EngineError
from cisfs.runtime.engines import bases, names
from cisfs.runtime.engines.keys import Loan
from cisfs.runtime.environment import FETCH_VARIABLE, LAYERS_VARIABLE, SCRATCH_VARIABLE
from cisfs.runtime.images.tools import in_words
from cisfs.runtime.oci import spec
from cisfs.runtime.options import Options, Port, settled, tmpfs_options
from cisfs.runtime.request import check_terminal

# Every container its own network in user space: on podman's bridge they would reach each other.
_ALONE = "slirp4netns"
_ANNOTATIONS = {
    LAYERS_VARIABLE: spec.LAYERS_ANNOTATION,
    SCRATCH_VARIABLE: spec.SCRATCH_ANNOTATION,
    FETCH_VARIABLE: spec.FETCH_ANNOTATION,
}


def has_image(image: str) -> bool:
    """Tell whether podman is installed and has an image of that name."""
    program = shutil.which("podman")
    name = image.removeprefix("docker-daemon:")
    if program is None or name != image:
        return False
    done = subprocess.run(
        [program, "image", "exists", "--", name],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def run(options: Options, loan: Loan) -> NoReturn:
    """Become podman, with the keys of `loan` there for a minute.

    Raises EngineError when it is not installed, or cannot do what is asked.
    """
    program = shutil.which("podman")
    if program is None:
        raise EngineError("podman is not installed; on Debian and Ubuntu: apt install podman")
    check_terminal(options)
    image = names.image_name(options, "podman")
    _provide(program, image, options.pull)
    bases.check(options, _described(program, image))
    options = replace(options, pull="never")  # so that it is the one that was looked at
    environment = _in_memory(options.environment)
    words = command(settled(options), names.runtime(), names.variables(options), environment)
    loan.give()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(program, ["podman", *words])  # noqa: S606 - no shell; this process has nothing left to do


def _provide(program: str, image: str, pull: str) -> None:
    """Have podman fetch the image if it has to; what it says of that is for the user."""
    if pull == "never" or (pull == "missing" and has_image(image)):
        return
    sys.stderr.flush()
    # It may ask on the terminal which registry is meant.
    done = subprocess.run([program, "pull", "--", image], stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise EngineError(f"podman cannot fetch image {image}")


def _described(program: str, image: str) -> bases.EngineImage:
    done = subprocess.run(
        [program, "image", "inspect", "--", image],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise EngineError(
            f"podman has no image {image}: {in_words(done.stderr.decode(errors='replace'))}"
        )
    try:
        return bases.EngineImage.parse(json.loads(done.stdout)[0], image)
    except (ValueError, LookupError, TypeError):
        raise EngineError(f"podman describes image {image} in no proper way") from None


def _in_memory(environment: Mapping[str, str]) -> str:
    """Return the path of a file that sets variables, for this process only: argv is for all to see.

    Raises EngineError for a value that such a file cannot express.
    """
    for name, value in environment.items():
        if "\n" in value:
            raise EngineError(f"--env {name}: podman takes no value of more than one line from us")
    file = os.memfd_create("cisfs environment", 0)  # podman, which we become, inherits it
    text = "".join(f"{name}={value}\n" for name, value in environment.items())
    os.write(file, text.encode("utf-8", "surrogateescape"))
    return f"/proc/self/fd/{file}"


def command(
    options: Options, runtime: str, variables: Mapping[str, str], environment: str
) -> list[str]:
    """Return podman's arguments for settled options; `environment` is the path of an env-file.

    What `variables` say goes into annotations: podman passes on those of the image as well, and
    what the user says is to be stronger.
    """
    words = ["--runtime", runtime, "run", "--security-opt", "no-new-privileges"]
    words += [f"--network={options.network or _ALONE}", f"--pids-limit={options.pids_limit or -1}"]
    words += [f"--pull={options.pull}"]
    words += _flags(options)
    for name, value in (
        ("name", options.name),
        ("hostname", options.hostname),
        ("user", options.user),
        ("workdir", options.working_directory),
        ("memory", f"{options.memory}b" if options.memory else None),
        ("memory-swap", f"{options.memory}b" if options.memory else None),
        ("cpus", f"{options.cpus:.9g}" if options.cpus else None),
        ("entrypoint", options.entrypoint),
    ):
        if value is not None:
            words.append(f"--{name}={value}")
    words.append(f"--env-file={environment}")
    words += [f"--annotation={_ANNOTATIONS[name]}={value}" for name, value in variables.items()]
    words += _lists(options)
    return [*words, "--", names.image_name(options, "podman"), *options.arguments]


def _flags(options: Options) -> list[str]:
    return [
        word
        for word, wanted in (
            ("--interactive", options.interactive),
            ("--tty", options.terminal),
            ("--detach", options.detach),
            ("--rm", options.remove),
            ("--read-only", options.read_only),
            # Its own file systems on /run and /tmp would be executable.
            ("--read-only-tmpfs=false", options.read_only),
        )
        if wanted
    ]


def _lists(options: Options) -> list[str]:
    kept = ",noexec,nosuid,nodev" if options.strict else ""
    return [
        *(f"--label={name}={value}" for name, value in options.labels.items()),
        *(f"--cap-drop={name}" for name in options.cap_drop),
        *(f"--cap-add={name}" for name in options.cap_add),
        *(f"--tmpfs={one.target}:{','.join(tmpfs_options(one))}" for one in options.tmpfs),
        *(
            f"--volume={one.source}:{one.target}:{'ro' if one.read_only else 'rw'}{kept}"
            for one in options.volumes
        ),
        *(f"--publish={_publish(port)}" for port in options.ports),
    ]


def _publish(port: Port) -> str:
    address = f"[{port.address}]" if ":" in port.address else port.address
    parts = [str(port.container_port)]
    if address or port.host_port:
        parts.insert(0, str(port.host_port or ""))
    if address:
        parts.insert(0, address)
    return f"{':'.join(parts)}/{port.protocol}"
