"""What the printf engine needs from its surroundings: guest memory, symbols, and names of kernel objects."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

from pkvm_emu.errors import ModuleError
from pkvm_emu.kernel.vsprintf_errno import errno_name

MASK64 = (1 << 64) - 1
POINTER_KEY = (0x706B_766D_5F65_6D75, 0x706F_696E_7465_7273)
"""The fixed SipHash key behind `%p`. A device draws a random one at boot, so hashed pointers never compare across
boots.
"""


class GuestFault(ModuleError):
    """A conversion reads a guest address that is not mapped; on a device the kernel oopses at this place.

    va: the address; size: bytes asked for; conversion: the conversion at fault, such as "%s", once the engine knows it.
    """

    def __init__(self, va: int, size: int = 1, conversion: str = "") -> None:
        super().__init__(va, size, conversion)
        self.va = va
        self.size = size
        self.conversion = conversion

    def __str__(self) -> str:
        fact = f"{self.size} bytes at {self.va:#x} are not mapped; a device oopses here"
        return f"conversion {self.conversion}: {fact}, check its argument" if self.conversion else fact


class DeviceNode(Protocol):
    """A device-tree node as `%pOF` prints it."""

    @property
    def full_name(self) -> str:
        """Path from the root with unit addresses: "/soc/uart@9000000", "/" for the root."""
        ...

    @property
    def phandle(self) -> int:
        """0 when the node has none."""
        ...

    @property
    def flags(self) -> int:
        """Bit mask of `struct device_node._flags`: bit 1 dynamic, 2 detached, 3 populated, 4 populated bus."""
        ...

    @property
    def compatible(self) -> Sequence[str]:
        """The strings of the `compatible` property, empty without one."""
        ...


class FormatEnv(Protocol):
    """The surroundings of one formatting call. Subclass it to inherit the answers given here; `read` and `read_cstr`
    are required.

    A hook that answers None does not know the object: the pointer is then printed hashed, as for an unknown extension.
    """

    kptr_restrict: int = 0
    """`kernel.kptr_restrict` for `%pK`: 0 hashed, 1 as it is (the caller is privileged), 2 zeros."""

    def read(self, va: int, size: int) -> bytes:
        """`size` bytes of guest memory at `va`; raises GuestFault if any is not mapped."""
        ...

    def read_cstr(self, va: int, limit: int) -> bytes:
        """The string at `va` without its NUL, at most `limit` bytes; reads nothing behind either end. Raises
        GuestFault.
        """
        ...

    def symbolize(self, va: int) -> str | None:
        """`name+0xoffset/0xsize`, with ` [module]` after it for a module's symbol; None when no symbol covers `va`."""
        return None

    def errno_name(self, number: int) -> str | None:
        """The name of a positive error number without a sign ("EINVAL"), None if it has none."""
        return errno_name(number)

    def hash_pointer(self, va: int) -> int:
        """What `%p` prints for `va`; return `va` itself to model `no_hash_pointers`."""
        return hash_pointer(va)

    def of_node(self, va: int) -> DeviceNode | None:
        """The device-tree node whose `struct device_node` is at `va` (`%pOF`)."""
        return None

    def fwnode(self, va: int) -> DeviceNode | None:
        """The node whose `struct fwnode_handle` is at `va` (`%pfw`)."""
        return None

    def dentry_path(self, va: int, components: int) -> str | None:
        """The last `components` names of the path of the `struct dentry` at `va` (`%pd`)."""
        return None

    def file_path(self, va: int, components: int) -> str | None:
        """The same for the `struct file` at `va` (`%pD`)."""
        return None

    def block_device_name(self, va: int) -> str | None:
        """Disk name and partition of the `struct block_device` at `va` (`%pg`)."""
        return None

    def clock_name(self, va: int) -> str | None:
        """The name of the `struct clk` at `va` (`%pC`)."""
        return None

    def flag_names(self, kind: str) -> Sequence[tuple[int, str]]:
        """(mask, name) in the kernel's order for `%pG`; kind: p page, g gfp, v vma, t page type. Bits without a name
        print as hex.
        """
        return ()

    def warn(self, message: str) -> None:
        """A WARN_ONCE that the engine raises (an unsupported conversion, a width out of range). Dropped unless
        overridden.
        """
        return


@lru_cache(maxsize=4096)
def hash_pointer(va: int, key: tuple[int, int] = POINTER_KEY) -> int:
    """The low 32 bits of SipHash-2-4 of the address, which is what `%p` prints (lib/vsprintf.c)."""
    return siphash_u64(va, key) & 0xFFFF_FFFF


def siphash_u64(value: int, key: tuple[int, int]) -> int:
    """SipHash-2-4 of one 64-bit little-endian word (Aumasson and Bernstein, 2012); key: its two 64-bit halves."""
    state = (
        key[0] ^ 0x736F_6D65_7073_6575,
        key[1] ^ 0x646F_7261_6E64_6F6D,
        key[0] ^ 0x6C79_6765_6E65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    )
    length_block = 8 << 56
    for word in (value & MASK64, length_block):
        v0, v1, v2, v3 = state
        v0, v1, v2, v3 = _sip_rounds((v0, v1, v2, v3 ^ word), 2)
        state = (v0 ^ word, v1, v2, v3)
    v0, v1, v2, v3 = state
    v0, v1, v2, v3 = _sip_rounds((v0, v1, v2 ^ 0xFF, v3), 4)
    return v0 ^ v1 ^ v2 ^ v3


def _sip_rounds(state: tuple[int, int, int, int], count: int) -> tuple[int, int, int, int]:
    v0, v1, v2, v3 = state
    for _ in range(count):
        v0 = (v0 + v1) & MASK64
        v1 = _rotate_left(v1, 13) ^ v0
        v0 = _rotate_left(v0, 32)
        v2 = (v2 + v3) & MASK64
        v3 = _rotate_left(v3, 16) ^ v2
        v0 = (v0 + v3) & MASK64
        v3 = _rotate_left(v3, 21) ^ v0
        v2 = (v2 + v1) & MASK64
        v1 = _rotate_left(v1, 17) ^ v2
        v2 = _rotate_left(v2, 32)
    return v0, v1, v2, v3


def _rotate_left(value: int, bits: int) -> int:
    return ((value << bits) | (value >> (64 - bits))) & MASK64
