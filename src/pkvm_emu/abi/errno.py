"""Linux error numbers by name (include/uapi/asm-generic/errno*.h and the kernel-internal ones)."""

from __future__ import annotations

_ROWS = """
1 EPERM Operation not permitted
2 ENOENT No such file or directory
3 ESRCH No such process
4 EINTR Interrupted system call
5 EIO I/O error
6 ENXIO No such device or address
7 E2BIG Argument list too long
8 ENOEXEC Exec format error
9 EBADF Bad file number
10 ECHILD No child processes
11 EAGAIN Try again
12 ENOMEM Out of memory
13 EACCES Permission denied
14 EFAULT Bad address
15 ENOTBLK Block device required
16 EBUSY Device or resource busy
17 EEXIST File exists
18 EXDEV Cross-device link
19 ENODEV No such device
20 ENOTDIR Not a directory
21 EISDIR Is a directory
22 EINVAL Invalid argument
23 ENFILE File table overflow
24 EMFILE Too many open files
25 ENOTTY Not a typewriter
26 ETXTBSY Text file busy
27 EFBIG File too large
28 ENOSPC No space left on device
29 ESPIPE Illegal seek
30 EROFS Read-only file system
31 EMLINK Too many links
32 EPIPE Broken pipe
33 EDOM Math argument out of domain of func
34 ERANGE Math result not representable
35 EDEADLK Resource deadlock would occur
36 ENAMETOOLONG File name too long
37 ENOLCK No record locks available
38 ENOSYS Invalid system call number
39 ENOTEMPTY Directory not empty
40 ELOOP Too many symbolic links encountered
42 ENOMSG No message of desired type
61 ENODATA No data available
62 ETIME Timer expired
71 EPROTO Protocol error
74 EBADMSG Not a data message
75 EOVERFLOW Value too large for defined data type
84 EILSEQ Illegal byte sequence
88 ENOTSOCK Socket operation on non-socket
90 EMSGSIZE Message too long
92 ENOPROTOOPT Protocol not available
93 EPROTONOSUPPORT Protocol not supported
95 EOPNOTSUPP Operation not supported on transport endpoint
97 EAFNOSUPPORT Address family not supported by protocol
98 EADDRINUSE Address already in use
99 EADDRNOTAVAIL Cannot assign requested address
104 ECONNRESET Connection reset by peer
105 ENOBUFS No buffer space available
107 ENOTCONN Transport endpoint is not connected
110 ETIMEDOUT Connection timed out
111 ECONNREFUSED Connection refused
114 EALREADY Operation already in progress
115 EINPROGRESS Operation now in progress
116 ESTALE Stale file handle
117 EUCLEAN Structure needs cleaning
125 ECANCELED Operation canceled
126 ENOKEY Required key not available
129 EKEYREJECTED Key was rejected by service
512 ERESTARTSYS Restart the system call
517 EPROBE_DEFER Driver requests probe retry
524 ENOTSUPP Operation is not supported
"""

_PARSED = [line.split(" ", 2) for line in _ROWS.strip().splitlines()]
ERRNO: dict[str, int] = {name: int(number) for number, name, _ in _PARSED}
"""Positive number by name."""
_NAMES: dict[int, str] = {int(number): name for number, name, _ in _PARSED}
_TEXTS: dict[int, str] = {int(number): text for number, _, text in _PARSED}

MAX_ERRNO = 4095
"""Pointers in the last page of the address space encode errors."""

EPERM, ENOENT, EIO, E2BIG, ENOEXEC = 1, 2, 5, 7, 8
EAGAIN, ENOMEM, EFAULT, EBUSY, EEXIST = 11, 12, 14, 16, 17
ENODEV, EINVAL, ENOSPC, ERANGE, ENOSYS = 19, 22, 28, 34, 38
ENODATA, EOVERFLOW, EOPNOTSUPP, ETIMEDOUT, EPROBE_DEFER = 61, 75, 95, 110, 517


def to_signed(value: int, bits: int = 32) -> int:
    """The low ``bits`` of a register as a signed number."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> bits - 1 else value


def is_err_value(value: int) -> bool:
    """True for a 64-bit value that the kernel takes for an error pointer."""
    return value & (1 << 64) - 1 >= (1 << 64) - MAX_ERRNO


def errno_of(value: int) -> int | None:
    """The negative errno in ``value``: a Python int, or a register holding a sign-extended or 32-bit one.

    >>> errno_of(-22), errno_of(0xFFFFFFEA), errno_of(0xFFFFFFFF_FFFFFFEA), errno_of(42)
    (-22, -22, -22, None)
    """
    for bits in (64, 32):
        signed = value if value < 0 else to_signed(value, bits)
        if -MAX_ERRNO <= signed < 0 and (bits == 64 or value >> 32 == 0):
            return signed
    return None


def errno_name(value: int) -> str:
    """``-22`` → ``-EINVAL``, ``22`` → ``EINVAL``; the decimal number where no errno has that value.

    Registers are taken as well (``0xffffffea``, ``0xffffffffffffffea``).
    """
    number = errno_of(value)
    if number is not None:
        return f"-{_NAMES[-number]}" if -number in _NAMES else str(number)
    return _NAMES.get(value, str(value))


def errno_number(name: str) -> int:
    """``EINVAL`` → 22.

    Raises:
        KeyError: no errno has that name.
    """
    for number, known in _NAMES.items():
        if known == name:
            return number
    raise KeyError(name)


def errno_text(value: int) -> str:
    """The description without the name: ``Invalid argument``; empty where there is none."""
    number = errno_of(value)
    return _TEXTS.get(-number if number is not None else value, "")


def describe(value: int) -> str:
    """``-EINVAL (Invalid argument)``; the plain number where no errno has that value."""
    text = errno_text(value)
    return f"{errno_name(value)} ({text})" if text else errno_name(value)
