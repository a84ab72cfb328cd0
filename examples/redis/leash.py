"""Runs a command that cannot outlive whoever started it: `python leash.py PARENT-PID COMMAND ...`.

Linux kills a process when its parent dies, once that process has asked for it (prctl(2), PR_SET_PDEATHSIG); a stopped one,
too. So this asks, looks whether the parent is still there to die, and then becomes the command.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent is gone already")
    os.execvp(sys.argv[2], sys.argv[2:])
