"""A child process that cannot outlive the process that started it, not even one that was killed with SIGKILL.

Linux signals a child when its parent dies, once the child has asked for it (prctl(2), PR_SET_PDEATHSIG). So a child
starts as this module, run as a script: it asks, and then becomes the command, under the same pid.

Two traps, both of which would kill a child too early or never:
- "Parent" means the *thread* that forked. A test may start a child from a short-lived thread (`asyncio.to_thread`),
  therefore all of them are started from one thread that lives as long as the process.
- The parent may have died before the child asked, hence the look at the parent's pid afterwards.

Where there is no prctl (macOS) a child still ends with `kill`, but it does outlive a killed parent.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_PR_SET_PDEATHSIG = 1

_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")


def start_child(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start the command with its output appended to `log`. Ctrl-C does not reach it: whoever started it ends it."""
    launcher = [sys.executable, "-I", __file__, str(os.getpid()), *command]
    return _spawner.submit(_spawn, launcher, log).result()


def _spawn(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


def _become(parent: int, command: list[str]) -> None:
    """Tie this process to the life of its parent, then turn it into the command."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent is gone already")
    os.execvp(command[0], command)


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
