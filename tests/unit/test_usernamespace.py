"""User namespaces: which ids a container gets, who gets one, and what runc is told."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cisfs.errors import EngineError
from cisfs.mount.idmap import SIZE
from cisfs.runtime import isolation, usernamespace
from cisfs.runtime.account import Account
from cisfs.runtime.engines import choose
from cisfs.runtime.isolation import Wish
from cisfs.runtime.options import AUTO, HOST, STRICT, Options, settled
from tests.unit.test_bundle import made

FIRST = 1 << 20


# ---- which ids


@given(st.integers(0, (1 << 128) - 1), st.lists(st.tuples(st.integers(0, 1 << 32), st.integers(0))))
def test_ids_are_in_the_range_of_containers_and_nobodys(
    number: int, given_away: list[tuple[int, int]]
) -> None:
    text = "".join(f"u{at}:{first}:{count}\n" for at, (first, count) in enumerate(given_away))
    try:
        first = usernamespace.choose(f"{number:032x}", text)
    except EngineError:
        return
    assert 524_288 <= first <= 1_879_048_191 - SIZE + 1
    assert first % SIZE == 0
    for begin, count in given_away:
        assert first + SIZE <= begin or begin + count <= first


def test_ids_that_others_have_are_passed_over() -> None:
    own = usernamespace.choose("0" * 32, "")
    assert usernamespace.choose("0" * 32, f"alice:{own + SIZE - 1}:1\n") == own + SIZE
    assert usernamespace.choose("0" * 32, f"alice:{own - 65_536}:65536\n") == own
    assert usernamespace.choose("0" * 32, "# x\nalice:a:b\n:\nx:1\nalice:²:3\n") == own
    last = usernamespace.choose(f"{28_663:x}", "")
    assert usernamespace.choose(f"{28_663:x}", f"alice:{last}:1\n") == own  # and round again


def test_no_ids_left() -> None:
    with pytest.raises(EngineError, match="/etc/subuid"):
        usernamespace.choose("0" * 32, "alice:0:4294967295\n")


@pytest.mark.parametrize(
    ("options", "wish"),
    [
        (Options(), Wish.NONE),
        (Options(profile=STRICT), Wish.WANTED),
        (Options(profile=STRICT, userns=HOST), Wish.NONE),
        (Options(profile=STRICT, userns=AUTO), Wish.NEEDED),
        (Options(userns=AUTO), Wish.NEEDED),
    ],
)
def test_who_is_to_have_one(options: Options, wish: Wish, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cisfs.runtime.cgroup.can_limit", lambda _: True)
    assert isolation.of(settled(options)).user_namespace is wish


@pytest.mark.parametrize("engine", ["docker", "podman"])
@pytest.mark.parametrize("userns", [AUTO, HOST])
def test_engines_that_decide_for_all(engine: str, userns: str) -> None:
    with pytest.raises(EngineError, match=f"--userns {userns}: {engine} .* --engine embedded"):
        choose.choose(engine, Options(image="x", userns=userns))
    assert choose.choose("embedded", Options(image="x", userns=userns)) == "embedded"
    assert choose.choose(engine, Options(image="x")) == engine


def test_accounts_that_it_has_no_ids_for() -> None:
    usernamespace.check(Account(SIZE - 1, SIZE - 1, (0, SIZE - 1)))
    for account in (Account(SIZE, 0), Account(0, SIZE), Account(0, 0, (1, SIZE))):
        with pytest.raises(EngineError, match="--userns host"):
            usernamespace.check(account)


# ---- what runc is told


def test_the_mappings() -> None:
    linux = made(first_owner=FIRST)["linux"]
    assert {"type": "user"} in linux["namespaces"]
    mapping = [{"containerID": 0, "hostID": FIRST, "size": 65_536}]
    assert linux["uidMappings"] == linux["gidMappings"] == mapping
    without = made()["linux"]
    assert "Mappings" not in json.dumps(without)
    assert {"type": "user"} not in without["namespaces"]


def test_a_sysfs_that_is_mounted_already() -> None:
    shown = isolation.Isolation(host_network=True, sysfs="/run/there/sys")
    (sysfs,) = (one for one in made(isolation=shown)["mounts"] if one["destination"] == "/sys")
    assert (sysfs["type"], sysfs["source"]) == ("bind", "/run/there/sys")
    assert {"bind", "ro", "nosuid", "noexec", "nodev"} <= set(sysfs["options"])
