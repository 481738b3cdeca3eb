"""`cisfs key`: who can open a vault or sealed layer.

Parses, calls `cisfs.layer.keyslots` and `cisfs.layer.rotation`, prints.  One call per process.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cisfs.cli import remote_key, rotation
from cisfs.cli.registries import PREFIX, add_access_options
from cisfs.cli.slot_list import print_removed, print_slots

HELP = "list, add and remove who can open a vault or sealed layer, or change its key"

_EPILOG = """\
LAYER is a path, or the name of a layer in /var/lib/cisfs/layers.  list, add and remove also take
docker://IMAGE, an image in a registry, for its sealed layers.  rotate takes no layer that was
pulled, whose identity is its name: copy it out of the store first.

list shows the key slots.  Each holds the layer's key, wrapped for one recipient, and is known by
its id.

add and remove change nothing but the slots: data and identity stay as they are, also of a layer
that is mounted, and whatever happens the layer can be opened by all who could before, or by all who
can afterwards.  Both take a key that opens the layer: it was unlocked, or is given.  The last slot
is never removed.

Who was removed may have kept a copy of the layer with the slot in it, or the layer's key itself.
rotate is for that: it encrypts everything anew under a fresh key, beside LAYER, which stays as it
is until the new one takes its place; so it takes as much space again.  Interrupted at any time, it
goes on when it is called again.  Public recipients get a slot of the new one by themselves, a
passphrase or key file does if it is given, and all others are to be dropped by their ids.  A sealed
layer has another identity afterwards, and no signatures.

Persistent scratches of containers on this host follow a layer that root rotates: the new one opens
them, and the old one does not any more.  Their own keys stay what they are, so who was dropped, and
kept such a key or a copy of such a scratch with its old slots, can still read what is written to
it: begin with a new scratch if that matters.

{recipients}
{identities}
examples:
  cisfs key list private.cis
  cisfs key add private.cis -r alice.pem -r age1f4k7...
  cisfs key add private.cis -r passphrase -i alice.key
  cisfs key remove private.cis 5e1612b79e39
  cisfs key rotate private.cis -i alice.key --drop 32261c25d662
  cisfs key add docker://registry.example/team/app:1 -r bob.pem -i alice.key
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    from cisfs.keys.options import add_key_options, add_recipient_option
    from cisfs.keys.spelling import IDENTITIES, RECIPIENTS

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG.format(recipients=RECIPIENTS, identities=IDENTITIES)
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    listing = _action(actions, "list", "show the key slots")
    listing.add_argument("--json", action="store_true", help="print one JSON document")
    adding = _action(actions, "add", "let somebody open it, too")
    add_recipient_option(adding, required=True)
    add_key_options(adding)
    removing = _action(actions, "remove", "take key slots away")
    removing.add_argument(
        "slots", metavar="ID", nargs="+", help="the id of a slot, or the start of it"
    )
    add_key_options(removing)
    _describe_rotation(_action(actions, "rotate", "encrypt it anew under a fresh key"))


def _describe_rotation(rotating: argparse.ArgumentParser) -> None:
    from cisfs.cli.arguments import workers
    from cisfs.keys.options import add_key_options, add_recipient_option

    add_recipient_option(rotating)
    rotating.add_argument(
        "--drop",
        metavar="ID",
        action="append",
        default=[],
        help="make no new slot in the place of this one; any number",
    )
    rotating.add_argument(
        "--workers",
        metavar="N",
        type=workers,
        help="processes that encrypt (default: one for each processor)",
    )
    rotating.add_argument("--json", action="store_true", help="print one JSON document")
    add_key_options(rotating)


def _action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    action = actions.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
    )
    action.formatter_class = argparse.RawDescriptionHelpFormatter
    action.add_argument("layer", metavar="LAYER", help="the vault or sealed layer")
    if name != "rotate":
        add_access_options(action)
    return action


def run(args: argparse.Namespace) -> int:
    """List or change the slots; return 0, or 128+N when signal N ended a rotation."""
    from cisfs.layer import store

    if args.layer.startswith(PREFIX):
        return remote_key.run(args)
    path = store.resolve_from_here(args.layer)
    if args.action == "rotate":
        return rotation.run(path, args)
    {"list": _list, "add": _add, "remove": _remove}[args.action](path, args)
    return 0


def _list(path: Path, args: argparse.Namespace) -> None:
    from cisfs.keys.slots import describe_slots
    from cisfs.layer import keyslots

    slots = keyslots.slots(path)
    if args.json:
        print(json.dumps({"path": str(path), "slots": describe_slots(slots)}, indent=2))
    else:
        print_slots(slots)


def _add(path: Path, args: argparse.Namespace) -> None:
    from cisfs.keys import options
    from cisfs.layer import keyslots, unlocked

    recipients = options.recipients(args)
    print_slots(keyslots.add(path, unlocked.opener(path, args), recipients))


def _remove(path: Path, args: argparse.Namespace) -> None:
    from cisfs.layer import keyslots, unlocked

    print_removed(keyslots.remove(path, unlocked.opener(path, args), args.slots))
