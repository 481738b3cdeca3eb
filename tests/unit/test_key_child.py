"""Programs that are asked for keys: what they get, how they end, and what is left of them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cisfs.errors import CisfsError
from cisfs.keys.child import MAX_ANSWER, Ended, ask

pytestmark = pytest.mark.slow

SECRET = "c2VjcmV0LWtleS0wMTIzNDU2Nzg5LXNlY3JldC1rZXktMDE="


def python(code: str, request: bytes = b"", timeout: float = 20) -> Ended:
    return ask("provider x", [sys.executable, "-c", code], request, timeout)


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it did not come true")


def gone(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"  # somebody else's to reap


def test_it_gets_the_request_and_its_answer_is_returned() -> None:
    request = bytes(range(256)) * 4000  # more than pipes hold
    ended = python("import shutil, sys; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)")
    assert (ended.status, ended.answer) == (0, b"")
    echo = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())"
    assert python(echo, request).answer == request


def test_it_need_not_read_the_request() -> None:
    assert python("print('done')", bytes(1 << 20)).answer == b"done\n"


def test_it_gets_three_descriptors_and_no_terminal() -> None:
    kept = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(kept, True)
    try:
        ended = python(
            "import os; print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1]);"
            "print(os.getsid(0) == os.getpid())"
        )
    finally:
        os.close(kept)
    assert ended.answer == b"[0, 1, 2]\nTrue\n"


@pytest.mark.parametrize(
    ("code", "status", "why"),
    [
        ("import sys; sys.exit(3)", 3, "exit status 3"),
        ("import os; os.kill(os.getpid(), 9)", -9, "ended by signal 9"),
        ("import sys; print('first\\n no such key \\n\\n', file=sys.stderr); sys.exit(1)", 1,
         "no such key"),
        ("import sys; print('a\\33[31mb\\0c', file=sys.stderr); sys.exit(1)", 1, "a [31mb c"),
        (f"import sys; print('key {SECRET} refused', file=sys.stderr); sys.exit(1)", 1,
         "key [...] refused"),
        ("import sys; print('" + "0f" * 32 + "', file=sys.stderr); sys.exit(1)", 1, "[...]"),
        ("import sys; print('" + "word " * 50 + SECRET + "', file=sys.stderr); sys.exit(1)", 1,
         "word " * 50 + "[...]"),
        ("import sys; print('/usr/lib/" + "directory/" * 5 + "', file=sys.stderr); sys.exit(1)", 1,
         "/usr/lib/" + "directory/" * 5),
        ("import os; os.write(2, b'\\xff' + b'x ' * 999999 + b'\\n'); os._exit(1)", 1,
         ("x " * 150)),
    ],
)  # fmt: skip
def test_its_last_words_are_quoted_but_no_key(code: str, status: int, why: str) -> None:
    ended = python(code)
    assert (ended.status, ended.why()) == (status, why)


def test_its_answer_is_not_in_a_repr() -> None:
    assert SECRET not in repr(python(f"print('{SECRET}')"))


def test_a_program_that_is_not_there_is_said_to_be_so() -> None:
    with pytest.raises(CisfsError, match=r"^provider x: cannot run /no/such: No such file"):
        ask("provider x", ["/no/such"], b"", 5)
    with pytest.raises(CisfsError, match=r"^provider x: cannot run /etc/passwd: Permission denied"):
        ask("provider x", ["/etc/passwd"], b"", 5)
    with pytest.raises(CisfsError, match=r"^provider x: cannot run a.b: embedded null byte"):
        ask("provider x", ["a\0b"], b"", 5)


@pytest.mark.parametrize(
    "stall",
    [
        "exec sleep 600",
        "exec sleep 600 <&- >&- 2>&-",
        "trap '' TERM HUP INT; sleep 600",
        "echo half an answer; exec sleep 600",
        "true",  # and leaves its output to its child
    ],
)
def test_one_that_does_not_end_is_ended_with_its_children(tmp_path: Path, stall: str) -> None:
    pids = tmp_path / "pids"
    code = f"sleep 600 & echo $$ $! > {pids}; {stall}"
    with pytest.raises(CisfsError, match=r"^provider x: no answer within 1 s$"):
        ask("provider x", ["sh", "-c", code], bytes(1 << 20), 1)
    child, grandchild = map(int, pids.read_text().split())
    assert not Path(f"/proc/{child}").exists()  # reaped, too
    wait_for(lambda: gone(grandchild))


def test_an_answer_without_end_is_cut_short() -> None:
    with pytest.raises(CisfsError, match=f"the answer has more than {MAX_ANSWER} bytes"):
        python("while True: print('x' * 65536)")
    with pytest.raises(CisfsError, match=f"the answer has more than {MAX_ANSWER} bytes"):
        python(f"import sys; sys.stdout.write('x' * {MAX_ANSWER + 1})")
    most = python(f"import sys; sys.stdout.write('x' * {MAX_ANSWER})")
    assert len(most.answer) == MAX_ANSWER


def test_complaints_without_end_are_not_kept() -> None:
    code = "import sys\nfor _ in range(3000): sys.stderr.write('x' * 9999 + '\\n')"
    assert python(code + "\nprint('last words', file=sys.stderr)").complaint == "last words"


def test_an_interrupt_ends_it(tmp_path: Path) -> None:
    """As Ctrl-C does, which the child's own session keeps from it."""
    pid = tmp_path / "pid"
    code = (
        "import os, signal, time;"
        f"open('{pid}', 'w').write(str(os.getpid()));"
        "os.kill(os.getppid(), signal.SIGINT);"
        "time.sleep(600)"
    )
    with pytest.raises(KeyboardInterrupt):
        python(code, timeout=60)
    assert not Path(f"/proc/{pid.read_text()}").exists()
