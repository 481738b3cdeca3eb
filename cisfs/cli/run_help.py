"""What `cisfs run --help` says beyond the list of options.

Text; knows nothing.  Safe anywhere.
"""

from __future__ import annotations

from pathlib import Path

ENGINES = ("auto", "embedded", "docker", "podman")
STORE = Path("/var/lib/cisfs")

EPILOG = """\
LAYER is a vault or a sealed layer, by its path or by its name in /var/lib/cisfs/layers.  They are
mounted read-only where only the container can see them, one over the other, the first --layer on
top and the image at the bottom.  Neither the image nor a layer is ever changed.  An image can name
its layers itself, topmost first, in its variable CISFS_LAYERS, its scratch in CISFS_SCRATCH, and
in CISFS_FETCH_TIMEOUT how long it waits for what is not fetched yet.

IMAGE is oci:PATH[:TAG], docker-archive:FILE[:NAME], docker://NAME, docker-daemon:NAME, or a bare
NAME.  Images are public: they are unpacked, in plain, below /var/lib/cisfs/images.

engines:
  embedded  runc, and nothing else.  Needs root.  The networks are none (default: nothing but a
            loopback interface) and host; no ports can be published.
  docker    the docker daemon (DOCKER_HOST), after `cisfs runtime configure --engine docker`; its
            containers get a network "cisfs", on which they do not reach each other.
  podman    the podman command.
  auto      embedded for --rootfs, oci:, docker-archive: and docker://; for a bare name and
            docker-daemon: docker, if it is there and configured, then podman, if it has the image,
            then embedded.

On every engine: no new privileges, a limit on processes, no traffic between containers.
--profile strict adds: no capabilities, no network unless asked for, a read-only root unless
--scratch is given, nothing executable in what can be written (/tmp, /run and /var/tmp are small
file systems in memory), 512 MiB of memory and 512 processes unless said otherwise, and with the
embedded engine a user namespace: the ids 0 to 65535 of the container are ids of the host that
nobody has.  Layers, scratch and volumes show and keep the owners they would have without; ids
beyond are nobody's.  Where it cannot be had (Linux before 6.3, --rootfs or a volume on a file
system that cannot be mounted with other owners, such as NFS or FUSE, a --user beyond), a line says
so, and all else holds.  docker and podman decide about user namespaces for all their containers.

A layer that "cisfs unlock" unlocked needs no key; all others are opened with the one given, which
docker and podman are lent for the time of the start.  The embedded engine leaves standard input
open and connected also without -i.

Ctrl-C, SIGTERM, SIGHUP and SIGQUIT go to the command; with the embedded engine they end it even
when it does not handle them, and three within three seconds kill it whatever it does.

exit status:
  that of CMD, or 128+N when signal N ended it
  125  cisfs itself failed before CMD began, or was used wrongly
  126  CMD was found but cannot be executed
  127  CMD was not found

examples:
  cisfs run --layer secrets.vault --rootfs ./rootfs -- cat /etc/app/token
  cisfs run -it --rm --layer app.cis docker://debian:12 bash
  cisfs run --engine docker -d --name web -p 8080:80 --layer site.cis nginx
"""
