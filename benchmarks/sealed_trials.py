"""The trials of sealed layers and of what stands beside them.

Knows nothing of the systems but two paths.  Pure.
"""

from __future__ import annotations

import json

from benchmarks.trials import FIND, TAR, Trial

READ = 'dd if="$VIEW/file/big" of=/dev/null bs=1M'
# The same blocks in every run.  Whether they are cached is not for fio to decide.
RANDOM = (
    'fio --name=random --filename="$VIEW/file/big" --readonly --allow_file_create=0 --rw=randread'
    " --bs=4k --ioengine=psync --number_ios=$READS --randseed=1619 --invalidate=0"
    " --output-format=json"
)


def reading_time(printed: str) -> float:
    """Return the seconds that fio spent in its reads, without its own start and end."""
    read = json.loads(printed)["jobs"][0]["read"]
    return float(read["lat_ns"]["mean"]) * int(read["total_ios"]) / 1e9


# Each system has its own command.
STORE = {
    "tree": Trial("store tree", "", count_command=True),
    "file": Trial("store file", "", count_command=True),
}
GROUPS: list[list[Trial]] = [
    [Trial("tar cold", TAR, cold=True), Trial("tar warm", TAR, again=True)],
    [Trial("find cold", FIND, cold=True), Trial("find warm", FIND, again=True)],
    [Trial("read cold", READ, cold=True), Trial("read warm", READ, again=True)],
    [
        Trial("random cold", RANDOM, cold=True, clock=reading_time),
        Trial("random warm", RANDOM, again=True, clock=reading_time),
    ],
]
MOUNT = "mount"  # to the first byte of a file; not a command
TRIALS = [
    *(trial.name for trial in STORE.values()),
    *(trial.name for group in GROUPS for trial in group),
    MOUNT,
]
COLD = {*(trial.name for group in GROUPS for trial in group if trial.cold), MOUNT}
FILE_TRIALS = {"store file", "read cold", "read warm", "random cold", "random warm"}
