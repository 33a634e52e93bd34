"""Work in a child of this process, that can be killed in the middle of it."""

import os
import signal
import time

from cuecraft.core.errors import StoppedError

FINISHED, STOPPED, BROKEN = 0, 4, 5


def forked(work, pause=0.0):
    """Do work in a child of this process; return its pid and a pipe that gets a byte for each step.

    Args:
        work: given what it has to call after each step.
        pause: seconds that the child waits after each step.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    code = BROKEN

    def told(_):
        os.write(writing, b".")
        time.sleep(pause)

    try:
        os.close(reading)
        work(told)
        code = FINISHED
    except StoppedError:
        code = STOPPED
    finally:
        os._exit(code)


def steps_of(pid, pipe, most=None):
    """Wait for a child to take some steps, or all; return how many it took."""
    taken = 0
    while (most is None or taken < most) and os.read(pipe, 1):
        taken += 1
    return taken


def ended(pid, pipe):
    """Wait for the end of a child; return its exit code."""
    os.close(pipe)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed(pid, pipe):
    """Kill a child; return its exit code."""
    os.kill(pid, signal.SIGKILL)
    return ended(pid, pipe)
