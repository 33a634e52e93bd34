"""Work in a child of this process, that can be killed in the middle of it; and the command line in one."""

import io
import os
import signal
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

from cuecraft import cli
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

    def report(_):
        os.write(writing, b".")
        time.sleep(pause)

    try:
        os.close(reading)
        work(report)
        code = FINISHED
    except StoppedError:
        code = STOPPED
    except BaseException:
        traceback.print_exc()
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


class Command:
    """`cuecraft` as a process of its own, with pipes and signals, without a second start of Python and PyTorch.

    It has what the tests use of `subprocess.Popen`.

    Args:
        words: arguments of the command line.
        environment: variables in addition to this process's own.
    """

    def __init__(self, *words, **environment):
        (out, to_out), (err, to_err) = os.pipe(), os.pipe()
        self.returncode = None
        self.pid = os.fork()
        if not self.pid:
            os.dup2(to_out, 1)
            os.dup2(to_err, 2)
            os.environ.update(environment)
            os._exit(_exit_code(words))
        os.close(to_out)
        os.close(to_err)
        self.stdout, self.stderr = os.fdopen(out), os.fdopen(err)

    def poll(self):
        """Return the exit code, None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout):
        """Wait for its end so many seconds at most."""
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                raise TimeoutError(f"it runs for more than {timeout} s")
            time.sleep(0.01)

    def communicate(self, timeout):
        """Return what it prints until its end, and what it writes to stderr."""
        with ThreadPoolExecutor(2) as readers:
            out, err = readers.map(lambda pipe: pipe.read(), (self.stdout, self.stderr))
        self.wait(timeout)
        return out, err

    def send_signal(self, number):
        """Send it a signal."""
        os.kill(self.pid, number)

    def __enter__(self):
        return self

    def __exit__(self, *ignored):
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        self.stdout.close()
        self.stderr.close()


def _exit_code(words):
    """Run the command line in a child, as if it had just been started; return its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    sys.argv = ["cuecraft", *map(str, words)]
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(), os.fdopen(1, "w"), os.fdopen(2, "w")
    code = 1
    try:
        cli.main()
    except SystemExit as stopped:
        code = stopped.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return code
