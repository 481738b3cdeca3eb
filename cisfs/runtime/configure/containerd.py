"""containerd's config.toml: a runtime handler `cisfs` for Kubernetes, in a marked block of lines.

The block is appended, and taken out again, as text: whatever else is in the file stays as it is,
comments included, and no TOML writer is needed.  That the result says what is meant, and nothing
else has changed its meaning, is checked by parsing both.  Pure functions over the text.  Sources:
containerd's docs/cri/config.md, for configuration versions 2 and 3; Kubernetes, "Runtime Class".
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

from cisfs.errors import UsageError
from cisfs.runtime.configure.name import ANNOTATIONS, NAME, refuse_foreign

CONFIG = Path("/etc/containerd/config.toml")

RUNTIME_CLASS = f"""\
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata:
  name: {NAME}
handler: {NAME}
"""

Table = dict[str, object]

_PLUGINS = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
_NEW = "version = 2\n"
_SHIM = "io.containerd.runc.v2"
# containerd has a handler of this name by itself only for as long as no handler is configured.
_RUNC = "runc"
_BEGIN = f'# {NAME}: begin (written by "cisfs runtime configure"; "unconfigure" removes it)\n'
_END = f"# {NAME}: end\n"


def configured(before: str | None, path: Path, runtime: str, *, force: bool) -> str:
    """Return the text of config.toml with the handler in it.

    Raises UsageError for text that is no configuration, a handler that is somebody else's, or one
    that is written so that it cannot be replaced.
    """
    text = _NEW if before is None else before
    config = _parse(text, path)
    handlers = _handlers(config, path)
    if handlers.get(NAME) == _handler(handlers, runtime):
        return text
    if NAME in handlers and not force:
        refuse_foreign(path, _path_of(handlers[NAME]), runtime)
    rest = _without(text, path)
    config = _parse(rest, path)
    handlers = _handlers(config, path)
    added: dict[str, Table] = {} if handlers else {_RUNC: {"runtime_type": _SHIM}}
    added[NAME] = _handler(handlers, runtime)
    handlers.update(added)
    gap = "" if rest.endswith("\n") or not rest else "\n"
    after = rest + gap + _block(_plugin(config, path), added)
    _verify(after, config, path)
    return after


def unconfigured(
    before: str | None, path: Path, runtime: str, earlier: Iterable[str], *, force: bool
) -> str | None:
    """Return the text without the handler: one of the `earlier` texts, if only its end differs.

    None if there should be no file: there was none, as far as is known, and nothing is left in it.
    Raises UsageError as `configured` does.
    """
    if before is None:
        return None
    config = _parse(before, path)
    handlers = _handlers(config, path)
    if NAME not in handlers:
        return before
    if not force:
        refuse_foreign(path, _path_of(handlers[NAME]), runtime)
    after = _without(before, path)
    for text in earlier:
        if text.rstrip("\n") == after.rstrip("\n"):
            return text
    return after if after != _NEW else None


def runtime_in(text: str, path: Path) -> str | None:
    """Return the path of the handler's runtime.  Raises UsageError as `configured` does."""
    return _path_of(_handlers(_parse(text, path), path).get(NAME))


def is_disabled(text: str | None, path: Path) -> bool:
    """Tell whether the configuration says that Kubernetes cannot use containerd at all."""
    config = _parse(text or "", path)
    plugins = config.get("disabled_plugins", [])
    return isinstance(plugins, list) and bool({"cri", *_PLUGINS.values()} & set(map(str, plugins)))


def _parse(text: str, path: Path) -> Table:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: {error}; nothing was changed") from None


def _plugin(config: Table, path: Path) -> str:
    """Return the name of the plugin that the handlers belong to."""
    version = config.get("version", 1)
    if not isinstance(version, int) or version not in _PLUGINS:
        raise UsageError(
            f"{path} has configuration version {version}; cisfs knows 2 and 3 "
            '("containerd config migrate" prints it as such)'
        )
    return _PLUGINS[version]


def _keys(plugin: str) -> tuple[str, ...]:
    return ("plugins", plugin, "containerd", "runtimes")


def _handlers(config: Table, path: Path) -> Table:
    """Return the table of handlers in a parsed configuration, which gets one if it has none."""
    table = config
    for key in _keys(_plugin(config, path)):
        inner = table.setdefault(key, {})
        if not isinstance(inner, dict):
            raise UsageError(f"{path}: {key!r} should be a table; nothing was changed")
        table = inner
    return table


def _handler(handlers: Table, runtime: str) -> Table:
    """Return the handler that is wanted; cgroups are managed as they are for runc."""
    options: Table = {"BinaryName": runtime}
    runc = handlers.get(_RUNC)
    of_runc = runc.get("options") if isinstance(runc, dict) else None
    if isinstance(of_runc, dict) and isinstance(of_runc.get("SystemdCgroup"), bool):
        options["SystemdCgroup"] = of_runc["SystemdCgroup"]
    return {
        "runtime_type": _SHIM,
        "pod_annotations": [ANNOTATIONS],
        "container_annotations": [ANNOTATIONS],
        "options": options,
    }


def _path_of(there: object) -> str | None:
    options = there.get("options") if isinstance(there, dict) else None
    named = options.get("BinaryName") if isinstance(options, dict) else None
    return named if isinstance(named, str) else None


def _block(plugin: str, handlers: dict[str, Table]) -> str:
    lines = []
    for name, handler in handlers.items():
        lines += _lines(f'plugins."{plugin}".containerd.runtimes.{name}', handler)
    return _BEGIN + "".join(f"{line}\n" for line in lines) + _END


def _lines(name: str, table: Table) -> list[str]:
    """Return a table as TOML, in which what is in ours is spelled as in JSON."""
    lines, inner = [f"[{name}]"], []
    for key, value in table.items():
        if isinstance(value, dict):
            inner += _lines(f"{name}.{key}", value)
        else:
            lines.append(f"  {key} = {json.dumps(value, ensure_ascii=False)}")
    return lines + inner


def _without(text: str, path: Path) -> str:
    """Return a text without what was added to it.

    Raises UsageError if it does not say the same afterwards, that aside.
    """
    meant = _parse(text, path)
    handlers, added = _handlers(meant, path), {NAME}
    begin, end = text.find(_BEGIN), text.find(_END)
    if 0 <= begin < end:
        block = _parse(f"version = {meant['version']}\n{text[begin:end]}", path)
        added |= _handlers(block, path).keys()
        rest = text[:begin] + text[end + len(_END) :]
    else:
        rest = _without_tables(text, _plugin(meant, path))
    for name in added & handlers.keys():
        del handlers[name]
    _verify(rest, meant, path)
    return rest


def _without_tables(text: str, plugin: str) -> str:
    """Return a text without the tables of the handler, which somebody else wrote."""
    kept, inside = [], False
    for line in text.splitlines(keepends=True):
        header = re.match(r"\s*\[([^]]*)\]", line)
        if header:
            inside = _names_ours(header[1], plugin)
        if not inside:
            kept.append(line)
    return "".join(kept)


def _names_ours(header: str, plugin: str) -> bool:
    """Tell whether a table's header names the handler or a table in it."""
    try:
        table: object = tomllib.loads(f"[{header}]\n")
    except tomllib.TOMLDecodeError:
        return False
    for key in (*_keys(plugin), NAME):
        if not isinstance(table, dict) or key not in table:
            return False
        table = table[key]
    return True


def _verify(text: str, meant: Table, path: Path) -> None:
    """Raise UsageError if a text does not say what is meant, empty tables aside."""
    try:
        said = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        said = {}
    if _pruned(said) != _pruned(meant):
        raise UsageError(
            f"the runtimes in {path} are written in a way that cisfs cannot edit; nothing was "
            f"changed (write them as tables: [plugins....containerd.runtimes.NAME])"
        )


def _pruned(value: object) -> object:
    """Return a value without empty tables, wherever they are."""
    if not isinstance(value, dict):
        return value
    pruned = {key: _pruned(inner) for key, inner in value.items()}
    return {key: inner for key, inner in pruned.items() if inner != {}}
