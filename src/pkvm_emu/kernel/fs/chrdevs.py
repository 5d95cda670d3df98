"""Character devices: numbers that are taken, and the ``struct cdev`` behind each (``fs/char_dev.c``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.abi.errno import EBUSY, EINVAL, ENODEV
from pkvm_emu.abi.file_structs import Cdev, MiscDevice, file_structs
from pkvm_emu.kernel.fs.guest_file import GuestFile, Operations
from pkvm_emu.kernel.fs.node import ENXIO
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.kernel.fs.open_file import OpenFile
    from pkvm_emu.kernel.kernel import Kernel

MINOR_BITS = 20
MINOR_MASK = (1 << MINOR_BITS) - 1
MISC_MAJOR = 10
_MAJOR_LIMIT = 512
#: Where a free major number is looked for: downwards from 254, then from 511.
_DYNAMIC = (*range(254, 233, -1), *range(511, 383, -1))
#: Majors of the kernel itself.
_BUILT_IN = {1: "mem", 4: "tty", 5: "/dev/tty", 10: "misc"}


class Region(NamedTuple):
    """Taken minors of a major: how many from the first one on, and the name of who took them."""

    minors: int
    name: str


@kernel_part
class Chrdevs(State):
    """Numbers and devices.

    Attributes:
        regions: by (major, first minor).
        devices: the ``struct cdev`` by (first device number, count).
        misc: ``struct miscdevice`` by minor.
        allocated: those that ``cdev_alloc`` made.
    """

    def __init__(self, kernel: Kernel) -> None:
        journal = kernel.machine.journal
        super().__init__(journal, "kernel.chrdevs")
        self._kernel = kernel
        self.regions: StateDict[tuple[int, int], Region] = StateDict(journal, "kernel.chrdevs.regions")
        self.devices: StateDict[tuple[int, int], int] = StateDict(journal, "kernel.chrdevs.devices")
        self.misc: StateDict[int, int] = StateDict(journal, "kernel.chrdevs.misc")
        self.allocated: StateDict[int, bool] = StateDict(journal, "kernel.chrdevs.allocated")
        for major, name in _BUILT_IN.items():
            self.regions[major, 0] = Region(256, name)

    # Numbers

    def register(self, major: int, first: int, count: int, name: str) -> int:
        """Take minors; the major (a free one where 0 was asked for), or -errno."""
        if not major:
            taken = {known for known, _ in self.regions}
            free = next((number for number in _DYNAMIC if number not in taken), None)
            if free is None:
                self._kernel.log.write(f'CHRDEV "{name}" dynamic allocation region is full', level=3)
                return -EBUSY
            major = free
        if major >= _MAJOR_LIMIT:
            self._kernel.log.write(
                f'CHRDEV "{name}" major requested ({major}) is greater than the maximum ({_MAJOR_LIMIT - 1})', level=3
            )
            return -EINVAL
        if count > MINOR_MASK + 1 - first or count <= 0:
            last = first + count - 1
            self._kernel.log.write(
                f'CHRDEV "{name}" minor range requested ({first}-{last}) is out of range of maximum range '
                f"(0-{MINOR_MASK}) for a single major",
                level=3,
            )
            return -EINVAL
        for (known, start), region in self.regions.items():
            if known == major and start < first + count and first < start + region.minors:
                return -EBUSY
        self.regions[major, first] = Region(count, name)
        return major

    def unregister(self, major: int, first: int, count: int) -> None:
        """Give minors back."""
        found = self.regions.get((major, first))
        if found is not None and found.minors == count:
            del self.regions[major, first]

    # Devices

    def add(self, cdev: int, device: int, count: int) -> int:
        """Put a ``struct cdev`` behind ``count`` numbers from ``device`` on; 0 or -errno."""
        if not device and not count:
            return -EINVAL
        # The newest of the same range is found first.
        self.devices.pop((device, count), None)
        self.devices[device, count] = cdev
        return 0

    def remove(self, cdev: int) -> None:
        """Take a ``struct cdev`` away; open files stay."""
        for key in [key for key, address in self.devices.items() if address == cdev]:
            del self.devices[key]

    def find(self, device: int) -> int | None:
        """The ``struct cdev`` behind a device number: of the smallest range that has it."""
        fitting = [key for key in self.devices if key[0] <= device < key[0] + key[1]]
        return self.devices[min(fitting, key=lambda key: key[1])] if fitting else None


class DeviceNode(GuestFile):
    """A node of ``/dev``: opening it looks for the driver behind its number.

    Args:
        kernel: whose drivers.
        device: major and minor number.
        mode: permission bits.
    """

    type_letter = "c"
    gone_errno = ENXIO

    def __init__(self, kernel: Kernel, device: tuple[int, int], mode: int) -> None:
        super().__init__(kernel, mode)
        self.device = device

    @property
    def _number(self) -> int:
        assert self.device is not None
        return self.device[0] << MINOR_BITS | self.device[1]

    def operations(self, handle: OpenFile) -> Operations | int:
        part, memory = self._kernel.part(Chrdevs), self._kernel.memory
        offsets = file_structs(self._kernel.generation.kernel).operations
        assert self.device is not None
        cdev = part.find(self._number)
        if cdev is not None:
            address = memory.read_u64(cdev + Cdev.OPS)
            if not address:
                return -ENXIO
            return Operations(address, offsets, (memory.read_u64(cdev + Cdev.OWNER), memory.read_u64(address)))
        if self.device[0] == MISC_MAJOR:
            misc = part.misc.get(self.device[1])
            if misc is not None:
                address = memory.read_u64(misc + MiscDevice.FOPS)
                return Operations(address, offsets, (memory.read_u64(address),))
            return -ENODEV
        return -ENXIO

    def prepare(self, handle: OpenFile, inode: int, file: int) -> None:
        part, memory, rows = self._kernel.part(Chrdevs), self._kernel.memory, self.structs
        cdev = part.find(self._number)
        if cdev is not None:
            memory.write_u64(inode + rows.inode.i_cdev, cdev)
            return
        assert self.device is not None
        # misc_open() hands the driver its own structure.
        memory.write_u64(file + rows.file.private_data, part.misc[self.device[1]])
