"""What system calls on an open file return to Python: numbers that know their errno's name."""

from __future__ import annotations

from pkvm_emu.abi.errno import errno_name


class FileResult(int):
    """A number as a system call returns it: a count, an offset, 0, or a negative errno.

    >>> FileResult(12), FileResult(-25)
    (12, -25 (-ENOTTY))
    >>> FileResult(-25).error
    'ENOTTY'

    Attributes:
        data: what an ``ioctl`` left in the buffer that was given to it.
    """

    data: bytes

    def __new__(cls, value: int, data: bytes = b"") -> FileResult:
        made = super().__new__(cls, value)
        made.data = data
        return made

    @property
    def ok(self) -> bool:
        """It is no error."""
        return self >= 0

    @property
    def error(self) -> str:
        """The name of the errno (``EFAULT``); an empty string where it worked."""
        return "" if self >= 0 else errno_name(-int(self)).lstrip("-")

    def __repr__(self) -> str:
        return f"{int(self)} (-{self.error})" if self < 0 else str(int(self))

    __str__ = __repr__


#: What the kernel answers itself and user space never sees: the calls are made again, or interrupted (-EINTR).
_RESTART = range(512, 517)
_ENOIOCTLCMD, _EINTR, _ENOTTY = 515, 4, 25


def as_user_sees(value: int) -> int:
    """A result of a driver's function as the system call returns it."""
    if -value == _ENOIOCTLCMD:
        return -_ENOTTY
    return -_EINTR if -value in _RESTART else value
