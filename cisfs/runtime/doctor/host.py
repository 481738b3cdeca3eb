"""What the host says of itself: its kernel, limits, control groups, swap, and where cores go.

Reads /proc and /sys; the judgements are functions over what was read.  Tries nothing out
(`probes`).  Safe anywhere.
"""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path

from cisfs.errors import NoFuseError
from cisfs.mount import points
from cisfs.runtime import cgroup
from cisfs.runtime.doctor.finding import Finding, failure, ok, warning

OLDEST_KERNEL = (5, 6)  # openat2(2), and MOVE_EXCL of keyctl(2) from 5.3
_ENOUGH_FILES = 4096
_BLOCK = Path("/sys/class/block")


def kernel(release: str) -> Finding:
    """Judge a release as uname(2) spells it."""
    found = re.match(r"(\d+)\.(\d+)", release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version < OLDEST_KERNEL:
        oldest = ".".join(map(str, OLDEST_KERNEL))
        return failure("kernel", f"Linux {release}", f"Linux {oldest} or later; best 6.12 or later")
    return ok("kernel", f"Linux {release}")


def user() -> Finding:
    """Judge who asks."""
    if os.geteuid() != 0:
        return failure("user", f"user {os.geteuid()}", "containers take root: sudo cisfs doctor")
    return ok("user", "root")


def fuse_device() -> Finding:
    """Judge /dev/fuse."""
    try:
        points.require_fuse()
    except NoFuseError as error:
        found, _, remedy = str(error).partition(": ")
        return failure("FUSE", found, remedy)
    return ok("FUSE", f"{points.FUSE_DEVICE} can be opened")


def control_groups() -> Finding:
    """Judge the control groups."""
    tops = list(cgroup.hierarchies())
    unified = any((top / "cgroup.controllers").exists() for top, _ in tops)
    if not tops:
        return warning("cgroups", "none are mounted", "mount -t cgroup2 cgroup2 /sys/fs/cgroup")
    version = "1 and 2 (hybrid)" if unified and len(tops) > 1 else "2" if unified else "1"
    if not cgroup.can_limit("pids"):
        return warning(
            "cgroups",
            f"version {version}, without the pids controller",
            "containers can use up all process numbers: boot with cgroup_enable=pids",
        )
    return ok("cgroups", f"version {version}")


def memory_lock(privileged: bool) -> Finding:
    """Judge whether keys can be kept out of swap."""
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if privileged or hard == resource.RLIM_INFINITY:
        return ok("locked memory", "without a limit")
    remedy = "keys may reach swap: raise the hard limit memlock in /etc/security/limits.conf"
    return warning("locked memory", f"at most {hard >> 10} KiB", remedy)


def open_files(hard: int) -> Finding:
    """Judge the hard limit of open files."""
    if hard != resource.RLIM_INFINITY and hard < _ENOUGH_FILES:
        remedy = f"raise the hard limit nofile to {_ENOUGH_FILES} or more"
        return warning("open files", f"at most {hard}", remedy)
    return ok("open files", "without a limit" if hard == resource.RLIM_INFINITY else str(hard))


def swap(swaps: str) -> Finding:
    """Judge /proc/swaps: what a server or container has decrypted can get there."""
    areas = [line.split()[0] for line in swaps.splitlines()[1:] if line.strip()]
    plain = [area for area in areas if not _stays_secret(area)]
    if plain:
        return warning(
            "swap",
            f"{', '.join(plain)} is not known to be encrypted",
            "decrypted pages can reach a disk: swapoff -a, zram, or an encrypted swap device",
        )
    return ok("swap", f"{', '.join(areas)}: encrypted or in memory" if areas else "none")


def core_pattern(pattern: str) -> Finding:
    """Judge where the kernel puts the memory of a program that crashes."""
    pattern = pattern.strip()
    if pattern.startswith("|"):
        return warning(
            "core dumps",
            f"a program on the host gets them: {pattern[1:].split()[0]}",
            "give containers of engines --ulimit core=1:1, at which the kernel makes none "
            "(cisfs run does), or: sysctl kernel.core_pattern=core",
        )
    return ok("core dumps", f"in the container itself: {pattern}" if pattern else "none")


def _stays_secret(area: str) -> bool:
    """Tell whether a swap area is memory, or encrypted by the device mapper."""
    name = os.path.basename(os.path.realpath(area))
    if name.startswith("zram"):
        return not (_BLOCK / name / "backing_dev").exists() or (
            (_BLOCK / name / "backing_dev").read_text().strip() == "none"
        )
    try:
        return (_BLOCK / name / "dm" / "uuid").read_text().startswith("CRYPT-")
    except OSError:
        return False
