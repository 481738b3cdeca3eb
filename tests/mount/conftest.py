"""Fixtures of the tests through the real kernel.

`harness.lab` says what each test is held to, whatever it asserts.  One vault is shared by the small
tests of a module, each in a directory of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.harness.lab import Lab, lab_in


@pytest.fixture(autouse=True, scope="session")
def _root_with_fuse() -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting, and being other users, needs root")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("there is no usable /dev/fuse here")


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A vault of the test's own, not mounted yet."""
    with lab_in(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One mounted vault for a module's small tests, open to all users."""
    with lab_in(tmp_path_factory.mktemp("shared")) as made:
        made.mount("--allow-other")
        yield made


@pytest.fixture
def here(shared: Lab, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory of the test's own in the shared mount; descriptors and log are judged after."""
    before = shared.open_files()
    path = shared.mountpoint / request.node.name.replace("/", "|")[:200]
    path.mkdir()
    yield path
    shared.judge_descriptors(before)
    shared.judge_log()
