"""Containers on a layer of which nothing but header and key slots is here.

Needs root, runc, busybox-static, mkfs.erofs and /dev/fuse, and fails without them.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cisfs.layer import lazy, slotarea
from cisfs.layer.origin import Origin
from tests.mount.harness import processes
from tests.mount.harness.lazy import bare
from tests.mount.harness.processes import wait_until
from tests.registry.harness.modern import modern_registry
from tests.registry.harness.proxy import Proxy, proxy
from tests.system.bundles import CONTAINERS, Site

pytestmark = [pytest.mark.root, pytest.mark.fuse]

SECRET = "the launch code\n"
FILES, SIZE = 24, 1 << 20
FIRST = "m/00"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    tmp_path.chmod(0o755)
    made = Site(tmp_path)
    yield made
    made.close()
    wait_until(lambda: not fetchers(made), "no fetcher is left")


@pytest.fixture
def front() -> Iterator[Proxy]:
    """The way to a registry, 5 MB/s wide."""
    with modern_registry() as registry, proxy((registry.host, registry.port), bandwidth=5e6) as way:
        vars(way)["registry"] = registry
        yield way


def fetchers(site: Site) -> list[int]:
    return [pid for pid in processes.mentioning(f"fetcher {site.base}") if processes.alive(pid)]


def content(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest() * (SIZE // 64)


def attached(site: Site, front: Proxy) -> Path:
    """Seal a layer that takes five seconds to fetch, push it, and forget it."""
    files = {f"m/{number:02}": content(number) for number in range(FILES)}
    whole = site.layer("layer", {"secret": SECRET, **files}, unlock=False)
    blob = bare(whole)
    digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
    vars(front)["registry"].blobs["a/b", digest] = blob
    with whole.open("rb") as file:
        text = slotarea.read(file.fileno()).text
    whole.unlink()
    source = Origin(front.name, "a/b", ((digest, len(blob)),))
    path = lazy.create(site.store, blob, text, source)
    site.unlock(path)
    return path


def test_cisfs_run_does_not_wait_for_the_layer(site: Site, front: Proxy) -> None:
    path = attached(site, front)
    words = ["run", "--store", str(site.store), "--rootfs", str(site.rootfs), "--layer", str(path)]
    done = site.must(*words, "cat", "/secret", "/etc/public")
    assert done.stdout == f"{SECRET}public\n"
    assert front.sent < FILES * SIZE / 2
    assert lazy.is_partial(path)
    assert "5" in site.must(*words, "sh", "-c", f"md5sum /{FIRST} | wc -l; echo 5").stdout


def test_containers_of_an_engine_share_what_is_fetched(site: Site, front: Proxy) -> None:
    path = attached(site, front)
    site.start("one", "sleep 1000", layers=[path])
    site.start("two", "sleep 1000", layers=[path])
    assert len(fetchers(site)) == 1
    expected = hashlib.md5(content(0).encode()).hexdigest()
    assert site.exec("one", "md5sum", f"/{FIRST}").stdout.split()[0] == expected
    front.stop()
    assert site.exec("two", "md5sum", f"/{FIRST}").stdout.split()[0] == expected
    front.resume()


def test_a_container_outlives_its_fetcher_and_the_fetcher_ends_with_it(
    site: Site, front: Proxy
) -> None:
    path = attached(site, front)
    site.start("box", "sleep 1000", layers=[path])
    (fetcher,) = fetchers(site)
    os.kill(fetcher, signal.SIGKILL)
    sums = site.exec("box", "sh", "-c", "cat /m/* | md5sum")
    everything = "".join(content(number) for number in range(FILES))
    assert sums.stdout.split()[0] == hashlib.md5(everything.encode()).hexdigest()
    site.delete("box")
    wait_until(lambda: not fetchers(site), "the fetcher has ended", 15)


def test_nothing_of_the_layer_is_on_the_disk_in_plain(site: Site, front: Proxy) -> None:
    path = attached(site, front)
    front.limit(None)
    site.start("box", "sleep 1000", layers=[path])
    assert site.exec("box", "cat", "/secret").stdout == SECRET
    wait_until(lambda: not lazy.is_partial(path), "all of it is here", 60)
    for file in path.parent.iterdir():
        if file.is_file():
            data = file.read_bytes()
            assert SECRET.encode() not in data
            assert content(0)[:64].encode() not in data


def test_how_long_a_read_waits_is_the_containers_choice(site: Site, front: Proxy) -> None:
    path = attached(site, front)
    site.start("box", "sleep 1000", layers=[path], annotations={"dev.cisfs.fetch-timeout": "2.5"})
    front.stop()
    read = site.exec("box", "cat", f"/m/{FILES - 1}")
    assert "Input/output error" in read.stderr
    (log,) = CONTAINERS.glob(f"*{site.base.name}*/log")
    assert "within 2.5 s" in log.read_text()
    site.delete("box")
    words = ["run", "--store", str(site.store), "--rootfs", str(site.rootfs), "--layer", str(path)]
    done = site.cisfs(*words, "--fetch-timeout=1.5", "cat", f"/m/{FILES - 1}")
    front.resume()
    assert "within 1.5 s" in done.stderr
    assert "Input/output error" in done.stderr


def test_what_is_no_time_is_refused(site: Site) -> None:
    path = site.layer("layer", {"secret": SECRET})
    wrong = {"dev.cisfs.fetch-timeout": "soon"}
    ended = site.run("box", "cat /secret", layers=[path], annotations=wrong)
    assert ended.returncode != 0
    assert "'soon' is not a number of seconds" in ended.stderr
