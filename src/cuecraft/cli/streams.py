"""The streams of the process, and the errors of the operating system and of codecs: one line each, and an exit code."""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from contextlib import suppress
from typing import Any, TextIO, cast

from cuecraft.cli import display

_LONGEST = 200  # characters of a path that are shown
#: What to do about an error of the operating system, by its number.
_REMEDIES = {
    errno.EACCES: "change its permissions, or choose another path",
    errno.EPERM: "change its permissions, or choose another path",
    errno.EROFS: "choose a folder that can be written to",
    errno.EISDIR: "give a file",
    errno.ENOTDIR: "check the path",
    errno.ENOENT: "check the path",
    errno.EEXIST: "choose another path",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "check the path",
    errno.ENOSPC: "free some space, or choose another path",
    errno.EDQUOT: "free some space, or choose another path",
    errno.EFBIG: "choose a path on another file system",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "close other programs",
}


class _Closed(io.TextIOBase):
    """Stands for a stream that the process was started without: each use raises an error that says so."""

    def __init__(self, name: str) -> None:
        self._name = name

    def _refuse(self, *ignored: object) -> Any:
        raise OSError(errno.EBADF, "is closed", self._name)

    read = readline = readlines = write = __next__ = _refuse

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """What a stream that is there would have."""
        return "utf-8"

    @property
    def buffer(self) -> _Closed:
        """The same for bytes."""
        return self


def open_streams() -> None:
    """Let every stream be there, and let no character be one that stdout or stderr cannot write.

    A character that the encoding lacks is written as its number, in the way of a Python string.
    """
    for number in (0, 1, 2):  # or the next file that is opened would take a standard stream's number
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or cast(TextIO, _Closed("stdin"))
    sys.stdout = sys.stdout or cast(TextIO, _Closed("stdout"))
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def end(code: str | int | None) -> str | int | None:
    """Write what is left for stdout; return the exit code, given that of the command.

    A reader that left early, such as `head`, makes it 1, as it does for other programs; another error makes it 2.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
        return code or 1
    except OSError as error:
        _forget_stdout()
        if not code:  # else it was shown
            display.fail(shown(error))
        return code or 2
    return code


def _unnamed(error: OSError) -> str:
    """Return where an error happened that does not say so: in stdout where results were shown, else in a file."""
    frames = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    if any(name.startswith("cuecraft.cli.display") for name in frames):
        return "stdout"
    try:
        sys.stdout.flush()
    except OSError:
        return "stdout"
    return "a file"


def _forget_stdout() -> None:
    """Let what could not be written be dropped, which Python would try again at its end."""
    with suppress(OSError, ValueError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)


def shown(error: OSError | UnicodeError) -> str:
    """Return an error of the operating system or of a codec in one line: where, what, and what to do."""
    if isinstance(error, UnicodeDecodeError):
        return (
            f"what was read is not {error.encoding} text (byte 0x{error.object[error.start]:02x} at {error.start}); "
            "convert it to UTF-8"
        )
    if isinstance(error, UnicodeError):
        return f"a text or a name holds what cannot be encoded ({error}); rename the file, or correct the text"
    if error.errno is None:
        return str(error) or type(error).__name__
    name = error.filename
    where = os.fsdecode(name) if isinstance(name, str | bytes) else _unnamed(error) if name is None else str(name)
    where = where if len(where) <= _LONGEST else f"{where[:_LONGEST]}..."
    what = error.strerror or os.strerror(error.errno)
    remedy = _REMEDIES.get(error.errno, "check it, and try again")
    return f"{where}: {what[:1].lower()}{what[1:]}; {remedy}"
