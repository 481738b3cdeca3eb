"""What the tests of `cisfs run` share: a root filesystem, and a site to run it at."""

from __future__ import annotations

from tests.system.test_run import rootfs, site

__all__ = ["rootfs", "site"]
