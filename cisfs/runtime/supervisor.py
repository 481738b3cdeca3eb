"""The process inside: it mounts the layers, runs the container, and undoes everything.

It is the first process of its own PID namespace and alone in its own mount namespace.  So when it
ends, however it ends, the kernel kills the servers, runc and the container, and what was mounted is
gone with the last of them: no death can leave decrypted data reachable.  Does not know the user's
terminal, nor the session it came from.  Single-threaded; signals reach it through its line only.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from cisfs.errors import CisfsError, EngineError, in_words
from cisfs.keys import memory
from cisfs.mount import server, syscalls
from cisfs.mount.idmap import Owners
from cisfs.registry.fetcher_launch import become
from cisfs.runtime import account_files, bundle, command, engine, restored, stack, usernamespace
from cisfs.runtime.container import Running, end_by_signal
from cisfs.runtime.deadline import TimeUp
from cisfs.runtime.ending import stop_signal
from cisfs.runtime.holdings import Opened, of_scratch
from cisfs.runtime.isolation import Isolation
from cisfs.runtime.line import ENDING, FORWARDED, Lower
from cisfs.runtime.request import Outcome, Request
from cisfs.runtime.workspace import Workspace

_QUIET = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
_NO_TERMINAL = (80, 24)  # columns and lines


def supervise(request: Request, opened: Opened, workspace: Workspace, line: Lower) -> NoReturn:
    """Be the supervisor: called in a forked child that is the first of a new PID namespace."""
    try:
        memory.lock()  # a fork's is not
        try:
            outcome = _Run(request, opened, workspace, line).perform()
        except CisfsError as error:
            outcome = Outcome(EngineError.exit_code, str(error))
        except OSError as error:
            outcome = Outcome(
                EngineError.exit_code, f"cannot set up the container: {in_words(error)}"
            )
        workspace.remove()
        line.send_outcome(outcome)
    except BaseException:  # noqa: BLE001 - a fork must not return into its parent's stack
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    os._exit(0)


@dataclass(frozen=True, slots=True)
class _Run:
    """One run; relative paths below are in the workspace, which is the current directory."""

    request: Request
    opened: Opened
    workspace: Workspace
    line: Lower

    def perform(self) -> Outcome:
        """Set up, run, and undo in the opposite order; return how the container ended."""
        with ExitStack() as undo:
            self._isolate(undo)
            if early := self._asked_to_end():
                return early
            count = len(self.opened.layers)
            isolation, owners = self.request.isolation, self._owners(undo)
            stack.mount(self._plan(owners), self.opened.layers, undo)
            if owners is not None:
                place = Path.cwd() / "outside"
                isolation = usernamespace.prepared(isolation, place, owners, undo)
            own = restored.environment(stack.layer_places(Path.cwd(), count))
            prepared = self._prepare("root", own, isolation, owners)
            if isinstance(prepared, command.Refusal):
                return Outcome(prepared.exit_code, prepared.message)
            Path("config.json").write_text(json.dumps(bundle.config(prepared)))
            return self._asked_to_end() or self._run(prepared)

    def _isolate(self, undo: ExitStack) -> None:
        # No keyboard reaches this session.  And the first process of a PID namespace is sent no
        # signal that it leaves at its default, so none can interrupt the undoing.
        os.setsid()
        for number in FORWARDED:
            signal.signal(number, signal.SIG_DFL)
        syscalls.leave_mounts()
        syscalls.mount("proc", "/proc", "proc", _QUIET)  # of the new PID namespace
        place = str(self.workspace.path)
        stack.mount_memory(self.workspace.path)
        undo.callback(syscalls.unmount, place, syscalls.MNT_DETACH)
        os.chdir(place)
        undo.callback(os.chdir, "/")

    def _owners(self, undo: ExitStack) -> Owners | None:
        place = Path.cwd()
        owners = usernamespace.attempt(
            usernamespace.Terms(
                self.request.isolation,
                self.request.user,
                self.workspace.identifier,
                (place, self.request.rootfs),
            ),
            undo,
        )
        if owners is not None:
            usernamespace.enter(place, owners)
        return owners

    def _plan(self, owners: Owners | None) -> stack.Plan:
        return stack.Plan(
            place=Path.cwd(),
            base=self.request.rootfs,
            scratch=self.request.scratch,
            store=self.request.store,
            options=server.MountOptions(
                read_only=True,
                detach=False,
                fetch=become,
                fetch_patience=self.request.fetch_patience,
                first_owner=owners.first if owners is not None else 0,
            ),
            owners=owners,
        )

    def _prepare(
        self, root: str, own: dict[str, str], isolation: Isolation, owners: Owners | None
    ) -> bundle.Container | command.Refusal:
        """Read the accounts and look for the command, in the tree as the container will see it.

        `own` is the environment that the sealed layers hold, `isolation` the request's, with
        volumes where they are mounted.
        """
        tree = os.open(root, os.O_PATH | os.O_DIRECTORY)
        try:
            who = account_files.resolve(tree, self.request.user)
            if owners is not None:
                usernamespace.check(who)
                usernamespace.hand_over_pipes(who, owners)
            self._check_working_directory(tree)
            container = bundle.Container(
                identifier=self.workspace.identifier,
                arguments=self.request.arguments,
                environment={**own, **self.request.environment},
                account=who,
                root=root,
                working_directory=self.request.working_directory,
                read_only=self.request.read_only,
                terminal=_terminal_size() if self.request.terminal else None,
                machine=self.request.machine,
                isolation=isolation,
                first_owner=owners.first if owners is not None else None,
            )
            return (
                command.refusal(
                    tree,
                    container.arguments[0],
                    bundle.environment(container)["PATH"],
                    container.working_directory,
                    who,
                    container.first_owner or 0,
                )
                or container
            )
        finally:
            os.close(tree)

    def _check_working_directory(self, tree: int) -> None:
        wanted = self.request.working_directory
        try:
            os.close(syscalls.open_in_root(tree, wanted, os.O_PATH | os.O_DIRECTORY))
        except NotADirectoryError:
            raise EngineError(f"--workdir {wanted}: not a directory in the container") from None
        except FileNotFoundError:
            if self.request.read_only:  # otherwise runc makes it
                raise EngineError(
                    f"--workdir {wanted} is not in the container, and --read-only forbids making it"
                ) from None

    def _run(self, container: bundle.Container) -> Outcome:
        runc = engine.Engine(self.request.runc, Path.cwd())
        if not container.terminal:
            started = runc.start(container.identifier, None)
        else:
            with closing(engine.Console(Path.cwd() / "console")) as console:
                started = runc.start(container.identifier, console)
                if isinstance(started, int):
                    master = console.receive()
                    self.line.send_terminal(master)
                    os.close(master)
        if isinstance(started, command.Refusal):
            return Outcome(started.exit_code, started.message)
        self.line.send_started(started)
        return Running(started).attend(self.line, self._time_up())

    def _time_up(self) -> TimeUp:
        held = (*self.opened.holdings, *of_scratch(self.request.scratch_place))
        return TimeUp((each.key for each in held), stop_signal(self.request.stop_signal))

    def _asked_to_end(self) -> Outcome | None:
        """Return the end that a signal, or the death of `cisfs run`, asks for before the start."""
        while (number := self.line.next_signal()) is not None:
            if number in ENDING:
                return end_by_signal(number)
        return end_by_signal(signal.SIGKILL) if self.line.hung_up else None


def _terminal_size() -> tuple[int, int]:
    try:
        return os.get_terminal_size(0)
    except OSError:
        return _NO_TERMINAL  # in the background
