"""The docker engine: a container of the docker daemon, with `cisfs-runtime` as its runtime.

The only importer of the docker package, which takes a quarter of a second.  Does not know layers or
keys: the runtime, which the daemon starts, finds both.  One container per process.
Source of exit codes and streams: docker's own command line (docker/cli, command/container/run.go).
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING

from cisfs.errors import EngineError
from cisfs.runtime import terminal
from cisfs.runtime.engine import exit_code_of
from cisfs.runtime.engines import attach, bases, docker_settings, names
from cisfs.runtime.engines.docker_settings import RUNTIME
from cisfs.runtime.engines.keys import Loan
from cisfs.runtime.options import Options, settled
from cisfs.runtime.request import Outcome, check_terminal

if TYPE_CHECKING:
    import requests
    from docker import APIClient

NETWORK = "cisfs"
_ISOLATED = {"com.docker.network.bridge.enable_icc": "false"}
_DEFAULT_HOST = "unix:///var/run/docker.sock"
_SECONDS = 60
_PIECE = 1 << 20


def is_ready() -> bool:
    """Tell whether a daemon answers that has the runtime configured."""
    try:
        with closing(_connect()) as api:
            _check_runtime(api)
    except EngineError:
        return False
    return True


def run(options: Options, loan: Loan) -> Outcome:
    """Run the container, with the keys of `loan` there while it starts; return how it ended.

    Raises EngineError when it could not be started.
    """
    image, variables = names.image_name(options, "docker"), names.variables(options)
    check_terminal(options)
    options = settled(options)
    api = _connect()
    import docker.errors
    import requests

    try:
        _check_runtime(api)
        _provide(api, image, options.pull)
        bases.check(options, _described(api, image))
        return _Container(api, _create(api, image, options, variables), options, loan).run()
    except docker.errors.APIError as error:
        raise EngineError(f"docker: {_in_words(error)}") from None
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        raise EngineError(f"docker went away: {error}") from None
    finally:
        api.close()


def saved(image: str) -> Iterator[bytes]:
    """Yield what `docker save` writes of an image: a tar, in pieces.

    Raises EngineError, also in the midst of it.
    """
    api = _connect()
    # The daemon says nothing until it has a copy of the image, however long that takes.
    api.timeout = None  # type: ignore[assignment] # of types-docker
    import docker.errors
    import requests

    try:
        yield from api.get_image(image, chunk_size=_PIECE)
    except docker.errors.APIError as error:
        raise EngineError(f"docker: {_in_words(error)}") from None
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        raise EngineError(f"docker went away: {error}") from None
    finally:
        api.close()


def _connect() -> APIClient:
    where = os.environ.get("DOCKER_HOST") or _DEFAULT_HOST
    nobody = f"docker does not answer at {where}: start it, or use --engine embedded"
    if where.startswith("unix://") and not _is_listening(where.removeprefix("unix://")):
        raise EngineError(nobody)
    try:
        import docker
        import requests
    except ImportError:
        raise EngineError(
            "--engine docker needs the Python package docker: pip install 'cisfs[docker]'"
        ) from None
    try:
        return docker.from_env(timeout=_SECONDS).api  # asks the daemon for its version
    except (docker.errors.DockerException, requests.exceptions.RequestException, ValueError):
        raise EngineError(nobody) from None


def _is_listening(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as tried:
        try:
            tried.connect(path)
        except OSError:
            return False
    return True


def _check_runtime(api: APIClient) -> None:
    if RUNTIME not in api.info().get("Runtimes", {}):
        raise EngineError(
            f"docker has no runtime {RUNTIME!r} yet: "
            "configure it with: cisfs runtime configure --engine docker"
        )


def _provide(api: APIClient, image: str, pull: str) -> None:
    import docker.errors
    from docker.utils import parse_repository_tag

    if pull != "always":
        try:
            api.inspect_image(image)  # type: ignore[no-untyped-call] # of types-docker
            return
        except docker.errors.ImageNotFound:
            if pull == "never":
                raise EngineError(
                    f"docker has no image {image}, and --pull never forbids fetching it"
                ) from None
    repository, tag = parse_repository_tag(image)
    failure = None
    try:
        for event in api.pull(repository, tag=tag or "latest", stream=True, decode=True):
            failure = event.get("error", failure)
    except docker.errors.APIError as error:
        failure = _in_words(error)
    if failure is not None:
        raise EngineError(f"docker cannot fetch image {image}: {failure}")


def _described(api: APIClient, image: str) -> bases.EngineImage:
    return bases.EngineImage.parse(api.inspect_image(image), image)  # type: ignore[no-untyped-call] # of types-docker


def _create(api: APIClient, image: str, options: Options, variables: dict[str, str]) -> str:
    """Create the container; return its id."""
    host_config = api.create_host_config(
        network_mode=_network(api, options), **docker_settings.of_host(options)
    )
    settings = docker_settings.of_process(options, variables)
    created = api.create_container(image, **settings, host_config=host_config)
    return str(created["Id"])


def _network(api: APIClient, options: Options) -> str:
    """Return the network to join; ours, on which containers do not see each other, if not said."""
    import docker.errors

    if options.network is not None:
        return options.network
    for network in api.networks(names=[NETWORK]):
        if network["Name"] == NETWORK:
            if _ISOLATED.items() <= (network.get("Options") or {}).items():
                return NETWORK
            raise EngineError(
                f"docker's network {NETWORK!r} is not one that cisfs made, and may connect its "
                f"containers: remove it (docker network rm {NETWORK}), or give --network"
            )
    try:
        api.create_network(NETWORK, driver="bridge", options=_ISOLATED, check_duplicate=True)
    except docker.errors.APIError as error:
        if error.status_code != 409:  # somebody else made it just now
            raise
    return NETWORK


class _Container:
    """A created container, until it has ended."""

    def __init__(self, api: APIClient, identifier: str, options: Options, loan: Loan) -> None:
        self._api = api
        self._identifier = identifier
        self._options = options
        self._loan = loan

    def run(self) -> Outcome:
        """Start it; return at once with --detach, else when it has ended."""
        if self._options.detach:
            refused = self._start()
            if refused is None:
                print(self._identifier)
            return refused or Outcome(0)
        with attach.signals_noticed() as signals:
            # Asked before the start, or a short life would be over, and the container removed.
            waiting = self._wait()
            stream = self._attach()
            try:
                refused = self._start()
                if refused is not None:
                    return refused
                with terminal.raw(0) if self._has_terminal else nullcontext():
                    self._resize()
                    attach.attend(stream, waiting.raw.fileno(), self._deliver, signals)
                return Outcome(int(waiting.json()["StatusCode"]))
            finally:
                stream.close()
                waiting.close()

    @property
    def _has_terminal(self) -> bool:
        return self._options.terminal and os.isatty(0)

    def _wait(self) -> requests.Response:
        """Ask for the end; the answer's head comes at once, and its body at the end."""
        return self._api.post(
            f"{self._api.base_url}/v{self._api.api_version}/containers/{self._identifier}/wait",
            params={"condition": "removed" if self._options.remove else "next-exit"},
            stream=True,
            timeout=None,
        )

    def _attach(self) -> attach.Stream:
        takes_input = self._options.interactive
        wanted = {"stdin": int(takes_input), "stdout": 1, "stderr": 1, "stream": 1}
        found = self._api.attach_socket(self._identifier, params=wanted)
        connection = getattr(found, "_sock", found)
        if not isinstance(connection, socket.socket):
            raise EngineError("docker over ssh is not supported: use a unix or tcp DOCKER_HOST")
        connection.settimeout(None)
        return attach.Stream(connection, framed=not self._options.terminal, takes_input=takes_input)

    def _start(self) -> Outcome | None:
        """Start it; return what to say when it cannot be, and leave nothing of it then."""
        import docker.errors

        try:
            with self._loan.given():
                self._api.start(self._identifier)
        except docker.errors.APIError as error:
            try:
                self._api.remove_container(self._identifier, force=True, v=True)
            except docker.errors.APIError:
                pass  # removed by the daemon, as --rm asks
            message = _in_words(error)
            return Outcome(
                exit_code_of(message), f"docker could not start the container: {message}"
            )
        return None

    def _deliver(self, number: int) -> None:
        import docker.errors

        if number == signal.SIGWINCH:
            self._resize()
            return
        try:
            self._api.kill(self._identifier, signal=number)
        except docker.errors.APIError:
            pass  # it has just ended by itself

    def _resize(self) -> None:
        import docker.errors

        if not self._has_terminal:
            return
        try:
            columns, lines = os.get_terminal_size(0)
            self._api.resize(self._identifier, lines, columns)
        except (OSError, docker.errors.APIError):
            pass  # one of the two has just been hung up


def _in_words(error: Exception) -> str:
    """Return docker's own explanation, in one line."""
    text = str(getattr(error, "explanation", None) or error)
    return " ".join(text.split()).removesuffix(": unknown")
