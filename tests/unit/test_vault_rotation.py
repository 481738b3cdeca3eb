"""Rotating a vault: the same tree under new keys, whatever happens on the way."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from cisfs.crypto.keys import SecretKey, rotation_key
from cisfs.errors import BusyError, CisfsError, IntegrityError, UsageError, WrongKeyError
from cisfs.format.config import SlotFields
from cisfs.format.rotation import VaultRecord
from cisfs.keys.credentials import MasterKey, RawKey, Recipients
from cisfs.keys.reopening import are_for
from cisfs.keys.slots import slot_id
from cisfs.layer import keyslots, partial, vault_rotation
from cisfs.layer import vault as vaults_of_cisfs
from cisfs.layer.partial import partial_directory
from cisfs.layer.rotation import rotate
from cisfs.layer.scratch_persistent import PersistentImage
from cisfs.layer.tree import ROOT, Change, VaultTree
from cisfs.layer.vault import Vault
from tests.unit import vaults
from tests.unit.vaults import KEY, ME, UNIT, flip

pytestmark = pytest.mark.slow

OTHER = RawKey(b"another key file of 32 bytes ..!")
IS_ROOT = os.geteuid() == 0
Facts = dict[bytes, tuple[object, ...]]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def path(memory_path: Path) -> Path:
    """A vault with one of everything."""
    path = vaults.make(memory_path / "vault")
    with vaults.mounted(path) as tree:
        fill(tree)
    return path


def fill(tree: VaultTree) -> None:
    directory = tree.mkdir(ROOT, b"directory", 0o2750, ME).node
    inner = tree.mkdir(directory, b"i" * 255, 0o700, ME).node
    for number in range(5):
        vaults.put(tree, b"file %d" % number, bytes([number + 1]) * (number * 3000), inner)
    node = vaults.put(tree, b"n" * 200, b"content" * 3000)
    tree.link(node, inner, b"another name")
    tree.setxattr(node, b"user.comment", b"words" * 100)
    tree.setattr(node, Change(mode=0o4711))
    sparse(tree)
    vaults.put(tree, b"empty", b"")
    link = tree.symlink(directory, b"link", b"to/somewhere " * 20, ME).node
    tree.setattr(link, Change(mtime_ns=7_000_000_001, atime_ns=5))
    tree.mknod(directory, b"fifo", stat.S_IFIFO | 0o640, 0, ME)
    tree.mknod(directory, b"whiteout", stat.S_IFCHR, 0, ME)
    tree.setxattr(inner, b"user.of a directory", b"")
    tree.setxattr(inner, b"system.posix_acl_default", ACL)
    tree.setxattr(directory, b"system.posix_acl_access", ACL)
    if IS_ROOT:
        tree.setxattr(link, b"trusted.of a link", b"value")
        tree.mknod(directory, b"device", stat.S_IFBLK | 0o600, os.makedev(7, 3), ME)
        theirs = vaults.put(tree, b"theirs", b"x", inner)
        tree.setattr(theirs, Change(uid=1234, gid=4321))
        tree.setattr(theirs, Change(mode=0o6755))
        tree.setattr(directory, Change(uid=1234, gid=4321))
        tree.setattr(directory, Change(mode=0o2750))
    for node in (inner, directory, ROOT):
        tree.setattr(node, Change(mtime_ns=node * 1_000_000_007, atime_ns=3))


def sparse(tree: VaultTree) -> None:
    handle, _ = tree.create(ROOT, b"sparse", stat.S_IFREG | 0o600, os.O_RDWR, ME)
    for at in (100 * UNIT, 5000 * UNIT + 17):
        tree.write(handle, at, b"island" * 1000)
    tree.setattr(handle, Change(size=9000 * UNIT))
    tree.release(handle)


# user::rwx, user:1234:r--, group::r-x, mask::r-x, other::--- (linux/posix_acl_xattr.h)
ACL = bytes.fromhex(
    "0200000001000700ffffffff02000400d204000004000500ffffffff10000500ffffffff20000000ffffffff"
)


def facts(path: Path, key: RawKey = KEY) -> Facts:
    """Everything that a vault says of its tree, by path; hard links by what else they are."""
    found: Facts = {}
    tree = VaultTree(Vault.open(path, key, read_only=True))
    links: dict[int, list[bytes]] = {}
    try:
        waiting = [(ROOT, b"")]
        while waiting:
            node, where = waiting.pop()
            found[where] = told(tree, node)
            links.setdefault(node, []).append(where)
            if stat.S_ISDIR(tree.getattr(node).mode):
                names = vaults.listing(tree, node)
                waiting += [(tree.lookup(node, each).node, where + b"/" + each) for each in names]
        found[b"hard links"] = tuple(sorted(tuple(sorted(each)) for each in links.values()))
    finally:
        tree.close()
    return found


def told(tree: VaultTree, node: int) -> tuple[object, ...]:
    attr = tree.getattr(node)
    content: object = None
    is_sparse = False
    if stat.S_ISREG(attr.mode):
        content = hash(vaults.content(tree, node))
        is_sparse = attr.blocks * 512 < attr.size // 2
    elif stat.S_ISLNK(attr.mode):
        content = tree.readlink(node)
    xattrs = {name: tree.getxattr(node, name) for name in tree.listxattr(node)}
    size = 0 if stat.S_ISDIR(attr.mode) else attr.size
    return (
        *(attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, size, is_sparse),
        *(attr.mtime_ns, content, tuple(sorted(xattrs.items()))),
    )


class Stop(BaseException):
    """Ends a rotation as ^C does."""


def stop_at(share: float) -> Callable[[int, int], None]:
    def stop(done: int, total: int) -> None:
        if done >= share * total:
            raise Stop

    return stop


def interrupted(path: Path, share: float, recipients: Recipients = KEY) -> None:
    with pytest.raises(Stop):
        rotate(path, KEY, recipients, progress=stop_at(share))


def is_rotated(path: Path, before: Facts, old_id: bytes, key: RawKey = KEY) -> None:
    """It has the same tree under another key, undamaged, and nothing lies beside it."""
    assert facts(path, key) == before
    assert vaults_of_cisfs.identifier(path) != old_id
    assert [each.name for each in path.parent.iterdir()] == [path.name]


# -- what comes out ------------------------------------------------------------------------


def test_the_tree_is_the_same(path: Path) -> None:
    before, old_id = facts(path), vaults_of_cisfs.identifier(path)
    said: list[tuple[int, int]] = []
    done = rotate(path, KEY, KEY, progress=lambda *each: said.append(each))
    assert done == type(done)(vaults_of_cisfs.identifier(path).hex(), None, continued=False)
    is_rotated(path, before, old_id)
    assert vaults.findings(path) == []
    assert said == sorted(said)
    assert said[-1][0] == said[-1][1] > 0


def test_only_the_new_recipients_open_it(path: Path) -> None:
    before, old = facts(path), vaults_of_cisfs.master_key(path, KEY)

    def chosen(slots: Sequence[SlotFields]) -> Recipients:
        assert [slot["type"] for slot in slots] == ["key-file"]
        return OTHER

    rotate(path, KEY, chosen)
    assert facts(path, OTHER) == before
    with pytest.raises(WrongKeyError, match="wrong key file"):
        Vault.open(path, KEY)
    with pytest.raises(WrongKeyError, match="stale"):
        Vault.open(path, MasterKey(old))


def regular(path: Path) -> list[Path]:
    """The regular files below a directory, those with content, sorted."""
    found = [Path(directory, each) for directory, _, names in os.walk(path) for each in names]
    return sorted(
        each for each in found if stat.S_ISREG(each.lstat().st_mode) and each.lstat().st_size
    )


def test_nothing_stored_is_what_it_was(path: Path) -> None:
    def stored() -> set[bytes]:
        found = {os.fsencode(name) for _, _, names in os.walk(path) for name in names}
        for content in (each.read_bytes() for each in regular(path)):
            found |= {content[at : at + 16] for at in range(16, len(content), UNIT + 16)}
        return {each for each in found if b"." not in each and any(each)}

    before = stored()
    rotate(path, KEY, KEY)
    assert not before & stored()


@pytest.mark.parametrize("mode", [0o750, 0o555, 0o2711])
def test_the_vault_itself_keeps_mode_and_owner(path: Path, mode: int) -> None:
    path.chmod(mode)
    before = path.stat()
    rotate(path, KEY, KEY)
    after = path.stat()
    assert after.st_ino != before.st_ino
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )


def test_an_inherited_acl_gets_nowhere(path: Path) -> None:
    before, old_id = facts(path), vaults_of_cisfs.identifier(path)
    os.setxattr(path.parent, "system.posix_acl_default", ACL)
    rotate(path, KEY, KEY)
    is_rotated(path, before, old_id)
    assert os.listxattr(path / "vault.json") == []


def test_a_symlink_stays_one(path: Path) -> None:
    link = path.parent / "link"
    link.symlink_to("vault")
    before = facts(path)
    rotate(link, KEY, KEY)
    assert link.is_symlink()
    assert facts(link) == before


def test_a_name_of_any_length_will_do(memory_path: Path) -> None:
    for name in ("n" * 255, "n" * 246, "\N{SNOWMAN}" * 85):
        vaults.make(memory_path / name)
        rotate(memory_path / name, KEY, KEY)
    assert len(list(memory_path.iterdir())) == 3


def test_a_scratch_keeps_its_holes(memory_path: Path) -> None:
    """10 GiB of which little is written takes neither space nor time."""
    path, size = memory_path / "scratch", 10 << 30
    image = PersistentImage.create(path, KEY, size)
    islands = {0: b"begin", 3 << 30: b"middle" * 50_000, size - 5: b"ended"}
    for at, data in islands.items():
        image.write(at, memoryview(data))
    image.discard(64 << 20, 1 << 30)
    image.close()
    before = space(path)
    rotate(path, KEY, KEY)
    image = PersistentImage.open(path, KEY)
    assert image.size == size
    for at, data in islands.items():
        assert bytes(image.read(at, len(data))) == data
    assert not any(image.read(1 << 30, 1 << 20))
    image.close()
    assert space(path) <= before + (1 << 20)


def space(path: Path) -> int:
    files = (each for each in path.rglob("*") if each.is_file())
    return sum(each.stat().st_blocks * 512 for each in files)


def test_deep_trees_are_copied(memory_path: Path) -> None:
    path, depth = vaults.make(memory_path / "vault"), 300
    with vaults.mounted(path) as tree:
        node = ROOT
        for _ in range(depth):
            node = tree.mkdir(node, b"d", 0o700, ME).node
        vaults.put(tree, b"file", b"at the bottom", node)
    rotate(path, KEY, KEY)
    with vaults.mounted(path, read_only=True) as tree:
        node = ROOT
        for _ in range(depth):
            node = tree.lookup(node, b"d").node
        assert vaults.fetch(tree, b"file", node) == b"at the bottom"


# -- interrupted ---------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 0.99])
def test_it_goes_on_where_it_was_interrupted(path: Path, share: float) -> None:
    before, old_id = facts(path), vaults_of_cisfs.identifier(path)
    interrupted(path, share)
    assert facts(path) == before
    with vaults.opened(path):
        pass  # it can be used, and is free
    begun = vaults_of_cisfs.identifier(partial_directory(path) / "new")
    done = rotate(path, KEY, KEY)
    assert done.continued
    assert done.key_id == begun.hex()
    is_rotated(path, before, old_id)


def test_it_is_interrupted_again_and_again(path: Path) -> None:
    before, old_id = facts(path), vaults_of_cisfs.identifier(path)
    for share in (0.1, 0.3, 0.6, 0.9):
        interrupted(path, share)
    assert rotate(path, KEY, KEY).continued
    is_rotated(path, before, old_id)


def test_what_is_there_is_not_written_again(path: Path) -> None:
    interrupted(path, 0.95)
    files = {
        each: (each.stat().st_ino, each.read_bytes())
        for each in regular(partial_directory(path) / "new")
        if "." not in each.name and each.stat().st_size > 64
    }
    assert len(files) >= 4
    rotate(path, KEY, KEY)
    new = partial_directory(path) / "new"
    kept = [
        inode == (path / each.relative_to(new)).stat().st_ino
        and (path / each.relative_to(new)).read_bytes() == content
        for each, (inode, content) in files.items()
    ]
    assert kept.count(False) <= 1  # the one that was being written


CHANGES: dict[str, Callable[[VaultTree], object]] = {
    "a file": lambda tree: rewrite(tree, b"n" * 200, 0, b"CHANGED"),
    "a file's end": lambda tree: rewrite(tree, b"n" * 200, 20_000, b"longer" * 500),
    "a hole": lambda tree: rewrite(tree, b"sparse", 300 * UNIT + 5, b"no hole"),
    "a file made shorter": lambda tree: resize(tree, b"n" * 200, 5000),
    "a file made empty": lambda tree: resize(tree, b"sparse", 0),
    "a file removed": lambda tree: tree.unlink(ROOT, b"empty"),
    "a file made a symlink": lambda tree: without(tree, b"empty").symlink(
        ROOT, b"empty", b"target", ME
    ),
    "a file made a directory": lambda tree: without(tree, b"empty").mkdir(
        ROOT, b"empty", 0o700, ME
    ),
    "a directory moved": lambda tree: tree.rename(ROOT, b"directory", ROOT, b"moved", 0),
    "a link broken": lambda tree: vaults.put(
        without(tree, b"n" * 200), b"n" * 200, b"by itself" * 1000
    ),
    "a link made": lambda tree: without(tree, b"empty").link(
        tree.lookup(ROOT, b"sparse").node, ROOT, b"empty"
    ),
    "an attribute": lambda tree: tree.setxattr(
        tree.lookup(ROOT, b"n" * 200).node, b"user.comment", b"others"
    ),
    "an attribute removed": lambda tree: tree.removexattr(
        tree.lookup(ROOT, b"n" * 200).node, b"user.comment"
    ),
    "another mode": lambda tree: tree.setattr(
        tree.lookup(ROOT, b"sparse").node, Change(mode=0o4755)
    ),
}


def without(tree: VaultTree, name: bytes) -> VaultTree:
    tree.unlink(ROOT, name)
    return tree


def rewrite(tree: VaultTree, name: bytes, at: int, data: bytes) -> None:
    """Change a file, and set its time back."""
    attr = tree.lookup(ROOT, name)
    handle = tree.open(attr.node, os.O_RDWR)
    tree.write(handle, at, data)
    tree.release(handle)
    tree.setattr(attr.node, Change(mtime_ns=attr.mtime_ns))


def resize(tree: VaultTree, name: bytes, size: int) -> None:
    tree.setattr(tree.lookup(ROOT, name).node, Change(size=size))


@pytest.mark.parametrize("what", CHANGES)
def test_what_was_changed_meanwhile_is_in_the_result(path: Path, what: str) -> None:
    """Between two runs the vault can be used; times that were set back deceive nobody."""
    interrupted(path, 1.0)
    with vaults.mounted(path) as tree:
        CHANGES[what](tree)
    before, old_id = facts(path), vaults_of_cisfs.identifier(path)
    rotate(path, KEY, KEY)
    is_rotated(path, before, old_id)
    assert vaults.findings(path) == []


def test_other_recipients_get_a_new_key(path: Path) -> None:
    before, old_id = facts(path), vaults_of_cisfs.identifier(path)
    interrupted(path, 0.5, [KEY, OTHER])
    begun = vaults_of_cisfs.identifier(partial_directory(path) / "new")
    done = rotate(path, KEY, KEY)
    assert not done.continued
    assert done.key_id != begun.hex()
    is_rotated(path, before, old_id)


def killed(how: Callable[[Callable[[], None]], object]) -> None:
    """Rotate in a child; `how` is given what kills it, and puts that somewhere."""
    child = os.fork()
    if child == 0:
        try:
            how(lambda: os.kill(os.getpid(), signal.SIGKILL))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)


def test_a_kill_before_the_exchange(path: Path) -> None:
    before, old_id = facts(path), vaults_of_cisfs.identifier(path)
    killed(lambda die: rotate(path, KEY, KEY, switching=lambda *_: die()))
    assert facts(path) == before
    assert vaults_of_cisfs.identifier(path) == old_id
    assert rotate(path, KEY, KEY).continued
    is_rotated(path, before, old_id)


def test_a_kill_after_the_exchange_does_not_use_up_the_next_one(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What it left is removed, even of a vault in use, and whoever is dropped now is dropped."""
    before, old_id = facts(path), vaults_of_cisfs.identifier(path)

    def while_removing(die: Callable[[], None]) -> None:
        real = os.unlink
        count = 0

        def unlink(name: bytes, *, dir_fd: int | None = None) -> None:
            nonlocal count
            count += 1
            if count > 3:
                die()
            real(name, dir_fd=dir_fd)

        os.unlink = unlink  # type: ignore[assignment]  # in the child only
        rotate(path, KEY, [KEY, OTHER])

    killed(while_removing)
    new_id = vaults_of_cisfs.identifier(path)
    assert new_id != old_id
    assert facts(path) == before
    assert partial_directory(path).exists()
    with vaults.opened(path, read_only=True), pytest.raises(BusyError, match="in use by"):
        rotate(path, OTHER, KEY)
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    (said,) = caplog.messages
    assert said.startswith(f"{path}: an earlier rotation of it had come to its end")
    assert not rotate(path, OTHER, KEY).continued
    is_rotated(path, before, new_id)
    with pytest.raises(WrongKeyError):
        Vault.open(path, OTHER)


def test_a_record_that_is_put_back_ends_no_rotation(path: Path) -> None:
    """Whoever can write to the storage may have kept it from a rotation that is long over."""
    before, place, kept = facts(path), partial_directory(path), path.parent / "kept"

    def keep(*_: object) -> None:
        shutil.copy(place / "source", kept)

    rotate(path, KEY, [KEY, OTHER], switching=keep)
    old_id = vaults_of_cisfs.identifier(path)
    place.mkdir(0o700)
    kept.rename(place / "source")
    assert not rotate(path, KEY, KEY).continued
    is_rotated(path, before, old_id)
    with pytest.raises(WrongKeyError):
        Vault.open(path, OTHER)


def test_scratch_keys_are_told_before_anything_changes(path: Path) -> None:
    with vaults.opened(path) as vault:
        old = vault.scratch_key()
    told: list[tuple[SecretKey, SecretKey]] = []
    after: list[bytes] = []

    def switched(*keys: SecretKey) -> None:
        assert told == [keys]
        after.append(vaults_of_cisfs.identifier(path))

    rotate(
        path,
        KEY,
        KEY,
        switching=lambda *keys: told.append((keys[0], keys[1])),
        switched=switched,
    )
    with vaults.opened(path) as vault:
        assert told == [(old, vault.scratch_key())]
        assert after == [vault.config.vault_id]


# -- what is not gone on with --------------------------------------------------------------


def test_what_was_altered_does_not_get_into_the_result(path: Path) -> None:
    """One bit of each file of an interrupted rotation in turn: ids, names, content, vault.json."""
    before, old_id = facts(path), vaults_of_cisfs.identifier(path)
    interrupted(path, 1.0)
    kept = path.parent / "kept"
    kept.mkdir()
    copy([path, partial_directory(path)], kept)
    files = regular(partial_directory(path))
    assert len(files) > 15
    for each in files:
        flip(each, each.stat().st_size // 2)
        rotate(path, KEY, KEY)
        assert facts(path) == before
        assert vaults_of_cisfs.identifier(path) != old_id
        assert [each for each in vaults.findings(path) if each.unit is not None] == []
        assert not partial_directory(path).exists()
        shutil.rmtree(path)
        copy(list(kept.iterdir()), path.parent)
    shutil.rmtree(kept)


def copy(trees: list[Path], to: Path) -> None:
    subprocess.run(["cp", "-a", *trees, to], check=True)


def test_a_hole_that_was_lost_is_made_again(path: Path) -> None:
    """Its marker may not have got to the disk before a power cut."""
    before, old_id = facts(path), vaults_of_cisfs.identifier(path)
    interrupted(path, 1.0)
    (sparse,) = [
        each for each in regular(partial_directory(path)) if each.stat().st_size > 8000 * UNIT
    ]
    with sparse.open("r+b") as file:
        file.seek(32)
        assert any(file.read(32))
        file.seek(32)
        file.write(bytes(32))
    assert rotate(path, KEY, KEY).continued
    is_rotated(path, before, old_id)
    assert vaults.findings(path) == []


@pytest.mark.parametrize("at", range(0, 112, 5))
def test_an_altered_record_is_not_believed(path: Path, at: int) -> None:
    before, old_id = facts(path), vaults_of_cisfs.identifier(path)
    interrupted(path, 0.5)
    flip(partial_directory(path) / "source", at)
    if at < 8:  # not ours, as far as one can see
        with pytest.raises(UsageError, match="in the way"):
            rotate(path, KEY, KEY)
        return
    assert rotate(path, KEY, KEY).continued == (at >= 80)  # the last code is for later
    is_rotated(path, before, old_id)


def test_one_that_was_made_without_the_old_key_is_begun_anew(path: Path) -> None:
    """Whoever knows a recipient's public key can make slots that it opens, of a key of theirs."""
    before, old_id = facts(path), vaults_of_cisfs.identifier(path)
    interrupted(path, 0.5)
    place = partial_directory(path)
    shutil.rmtree(place / "new")
    master = vaults_of_cisfs.create(place / "new", KEY)
    record = VaultRecord(vaults_of_cisfs.identifier(place / "new"), old_id)
    key = rotation_key(master, SecretKey(b"f" * 32), record.vault_id)
    mac = vault_rotation._mac(key, record)
    forged = VaultRecord(record.vault_id, old_id, mac, mac)
    (place / "source").write_bytes(forged.pack())
    done = rotate(path, KEY, KEY)
    assert not done.continued
    assert done.key_id != forged.vault_id.hex()
    is_rotated(path, before, old_id)


def test_nobody_but_a_key_holder_says_that_it_is_over(path: Path) -> None:
    before, old_id = facts(path), vaults_of_cisfs.identifier(path)
    place = partial_directory(path)
    place.mkdir(0o700)
    forged = VaultRecord(old_id, bytes(16), b"m" * 32, b"m" * 32)
    (place / "source").write_bytes(forged.pack())
    assert not rotate(path, KEY, KEY).continued
    is_rotated(path, before, old_id)


# -- what goes wrong -----------------------------------------------------------------------


def test_damage_in_the_old_one_ends_it(path: Path) -> None:
    with vaults.mounted(path) as tree:
        node = tree.lookup(ROOT, b"n" * 200).node
        stored = os.fsdecode(tree._places.path(tree._table[node])).rsplit("/", 1)[1]
    flip(path / stored, 100)
    before = {each: each.read_bytes() for each in regular(path)}
    for _ in range(2):
        with pytest.raises(
            IntegrityError, match=r"^/(n{200}|directory/i+/another name): unit 0 was"
        ):
            rotate(path, KEY, KEY)
    for each, content in before.items():
        if each.name != "cisfs.journal":
            assert each.read_bytes() == content


def test_a_unit_that_was_zeroed_is_no_hole(memory_path: Path) -> None:
    path = vaults.make(memory_path / "vault")
    with vaults.mounted(path) as tree:
        vaults.put(tree, b"file", b"x" * 10 * UNIT)
    with vaults.only(path).open("r+b") as file:
        file.seek(32 + 3 * (UNIT + 16))
        file.write(bytes(UNIT + 16))
    with pytest.raises(IntegrityError, match=r"^/file: unit 3 was altered"):
        rotate(path, KEY, KEY)


def test_keys_that_are_changed_meanwhile_are_not_lost(path: Path) -> None:
    """Nor does one come back that was removed."""
    old_id = vaults_of_cisfs.identifier(path)
    keyslots.add(path, KEY, OTHER)

    def remove(*_: object) -> None:
        (mine,) = [each for each in keyslots.slots(path) if are_for([each], OTHER, master, old_id)]
        keyslots.remove(path, KEY, [slot_id(mine)])

    master = vaults_of_cisfs.master_key(path, KEY)
    with pytest.raises(CisfsError, match="was changed while it was rotated"):
        rotate(path, KEY, [KEY, OTHER], switching=remove)
    before = facts(path)
    assert not rotate(path, KEY, KEY).continued
    is_rotated(path, before, old_id)


def test_a_name_that_cannot_be_read_ends_it(path: Path) -> None:
    (path / "A234").write_text("foreign")
    with pytest.raises(IntegrityError, match="A234"):
        rotate(path, KEY, KEY)


def test_a_vault_in_use_is_left_alone(path: Path) -> None:
    for read_only in (False, True):
        with vaults.opened(path, read_only=read_only), pytest.raises(BusyError, match="in use by"):
            rotate(path, KEY, KEY)
        assert list(path.parent.iterdir()) == [path]


def test_nobody_uses_it_meanwhile(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "PATIENCE", 0.05)
    tried: list[bool] = []

    def use(*_: object) -> None:
        if tried:
            return
        with pytest.raises(BusyError, match="in use by"):
            Vault.open(path, KEY)
        with pytest.raises(BusyError, match="is being rotated by another cisfs command"):
            rotate(path, KEY, KEY)
        tried.append(True)

    before, old_id = facts(path), vaults_of_cisfs.identifier(path)
    rotate(path, KEY, KEY, progress=use)
    is_rotated(path, before, old_id)
    assert tried


@pytest.mark.parametrize("what", ["file", "symlink", "directory", "like ours"])
def test_what_is_in_the_way_is_left_alone(path: Path, what: str) -> None:
    there, precious = partial_directory(path), path.parent / "precious"
    precious.write_text("precious")
    match what:
        case "file":
            there.hardlink_to(precious)
        case "symlink":
            there.symlink_to(path.parent)
        case "directory":
            there.mkdir()
            (there / "new").write_text("precious")
        case _:
            there.mkdir()
            (there / "source").write_text("precious")
    with pytest.raises(UsageError, match=f"^{there} is in the way"):
        rotate(path, KEY, KEY)
    assert precious.read_text() == "precious"
    if there.is_dir() and not there.is_symlink():
        assert [each.read_text() for each in there.iterdir()] == ["precious"]


def test_a_full_disk_is_said_in_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, old_id, real, room = facts(path), vaults_of_cisfs.identifier(path), os.pwrite, 20

    def full(fd: int, data: bytes, offset: int) -> int:
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(
            CisfsError, match=r"^no space left to rotate [^;]*; .* remove "
        ) as caught:
            rotate(path, KEY, KEY)
    assert "\n" not in str(caught.value)
    assert facts(path) == before
    assert rotate(path, KEY, KEY).continued
    is_rotated(path, before, old_id)


def test_a_file_system_that_cannot_exchange_is_refused_at_the_start(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(vault_rotation, "renameat2", unsupported)
    with pytest.raises(CisfsError, match="cannot exchange two directories"):
        rotate(path, KEY, KEY)
    assert list(path.parent.iterdir()) == [path]


def test_a_wrong_key_makes_nothing(path: Path) -> None:
    with pytest.raises(WrongKeyError):
        rotate(path, OTHER, KEY)
    assert list(path.parent.iterdir()) == [path]
