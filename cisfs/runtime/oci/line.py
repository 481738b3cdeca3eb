"""The command line of an OCI runtime, runc's: its global options, the command, the command's own.

Our own global options are taken out; all else is for runc, which judges it.  Imports nothing: see
`main`.  Pure; safe anywhere.
"""

from __future__ import annotations

# Ours: another runtime to become; where scratches are kept, instead of /var/lib/cisfs; the trust
# policy, instead of /etc/cisfs/policy.toml.
_OWN = frozenset({"policy", "runtime-binary", "store"})
# Options whose value may be the next word: of runc 1.1, and crun's own.
_OF_CRUN = frozenset({"cgroup-manager", "log-level"})
_GLOBAL = _OWN | _OF_CRUN | {"log", "log-format", "root", "criu", "rootless"}
_OF_CREATE = frozenset({"bundle", "b", "config", "console-socket", "f", "pid-file", "preserve-fds"})
_OF_CHECKPOINT = frozenset(
    {
        "image-path",
        "work-path",
        "parent-path",
        "page-server",
        "manage-cgroups-mode",
        "status-fd",
        "empty-ns",
        "lsm-profile",
        "lsm-mount-context",
    }
)
_OF_COMMAND = _OF_CREATE | _OF_CHECKPOINT
_OF_EXEC = _OF_CREATE | {
    "additional-gids",
    "apparmor",
    "c",
    "cap",
    "cgroup",
    "cwd",
    "e",
    "env",
    "g",
    "p",
    "process",
    "process-label",
    "u",
    "user",
}
# Where runc takes options behind the container's id, too (urfave/cli v1, reorderArgs).  Missing one
# would be to miss a bundle, and to start a container without its layers.
_ANYWHERE = frozenset({"create", "run", "checkpoint", "restore"})
_DEFAULT_ROOT = "/run/runc"


class Line:
    """A command line: `words` for runc, `command` or "", and `arguments`, what follows options."""

    __slots__ = ("arguments", "command", "options", "options_end", "own", "words")

    def __init__(self) -> None:
        """Used by `parse` only."""
        self.words: list[str] = []
        self.command = ""
        self.own: dict[str, str] = {}
        self.options: dict[str, str] = {}  # all others, of the runtime and of the command
        self.arguments: list[str] = []
        self.options_end = 0  # which of the words follows the command's options

    @property
    def container(self) -> str:
        """The container's id, "" if there is none."""
        return self.arguments[0] if self.arguments else ""

    @property
    def bundle(self) -> str:
        """The bundle's directory, as it was given."""
        return self.options.get("bundle") or self.options.get("b") or "."

    @property
    def config(self) -> str | None:
        """The file that is read instead of the bundle's config.json, crun(1), if there is one."""
        return self.options.get("config") or self.options.get("f")

    @property
    def process(self) -> str | None:
        """The file that describes the process to execute, if there is one."""
        return self.options.get("process") or self.options.get("p")

    @property
    def root(self) -> str:
        """Where the runtime keeps the state of its containers."""
        return self.options.get("root", _DEFAULT_ROOT)

    def add_option(self, name: str, value: str) -> None:
        """Give the command an option of runc's; of two with one name it takes the last.

        For a command that takes options before its arguments only.
        """
        self.words[self.options_end : self.options_end] = [f"--{name}", value]


def parse(words: list[str]) -> Line:
    """Return what `words`, without the program's name, say."""
    line = Line()
    rest = _options(line, words, _GLOBAL)
    if rest:
        line.command = rest[0]
        line.words.append(rest[0])
        valued = _OF_EXEC if line.command == "exec" else _OF_COMMAND
        rest = _options(line, rest[1:], valued)
        line.options_end = len(line.words)
        while rest and rest[0] != "--" and line.command in _ANYWHERE:
            line.arguments.append(rest[0])
            line.words.append(rest[0])
            rest = _options(line, rest[1:], valued)
        line.words += rest
        line.arguments += rest[1:] if rest[:1] == ["--"] else rest
    return line


def _options(line: Line, words: list[str], valued: frozenset[str]) -> list[str]:
    """Take the options at the start of `words` into `line`; return the rest.

    As Go has them: one dash or two, and a value after "=" or in the next word.
    """
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] not in ("-", "--"):
        name, equals, value = words[at].lstrip("-").partition("=")
        taken = [words[at]]
        if not equals and name in valued and at + 1 < len(words):
            value = words[at + 1]
            taken.append(value)
        at += len(taken)
        if name in _OWN and not line.command:
            line.own[name] = value
        else:
            line.options[name] = value
            line.words += taken
    return words[at:]
