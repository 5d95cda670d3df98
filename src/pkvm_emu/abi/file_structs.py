"""Where the members of file structures are, by kernel line.

Compiled drivers fill and read these in place: ``file->private_data``, ``inode->i_rdev``, ``vma->vm_pgoff``. Sources:
``include/linux/{fs,mm_types,mm,uio,seq_file,proc_fs,cdev,miscdevice,kobject,sysfs,device}.h`` of the GKI branches with their
configuration (a ``struct mutex`` has 16 bytes of vendor data, which shifts what follows ``f_pos_lock`` and ``seq_file.lock``).

Every offset of 5.15, 6.1, 6.6 and 6.12 that a driver uses was compared with what some 280 to 600 shipped modules of that line
do: relocations inside their ``*_fops`` and ``*_proc_ops``, loads and stores of their open, read, show, poll and mmap functions.
Modules that were compiled against this project's headers use the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class FileLayout:
    """``struct file``: byte offsets, and its size."""

    size: int
    f_mode: int
    f_op: int
    f_mapping: int
    private_data: int
    f_inode: int
    f_flags: int
    f_path: int
    f_pos: int
    f_count: int


@dataclass(frozen=True, slots=True)
class InodeLayout:
    """``struct inode``: byte offsets, and its size."""

    size: int
    i_cdev: int
    i_private: int
    i_mode: int = 0
    i_ino: int = 64
    i_rdev: int = 76
    i_size: int = 80


@dataclass(frozen=True, slots=True)
class VmaLayout:
    """``struct vm_area_struct``: byte offsets, and its size."""

    size: int
    vm_page_prot: int
    vm_flags: int
    vm_ops: int
    vm_pgoff: int
    vm_file: int
    vm_private_data: int
    vm_start: int = 0
    vm_end: int = 8


@dataclass(frozen=True, slots=True)
class FaultLayout:
    """``struct vm_fault``: byte offsets, and its size. ``real_address`` is None where there is none."""

    address: int
    real_address: int | None
    flags: int
    page: int
    size: int = 160
    vma: int = 0
    gfp_mask: int = 8
    pgoff: int = 16


@dataclass(frozen=True, slots=True)
class IterLayout:
    """``struct iov_iter`` over one user buffer: byte offsets, and what says so.

    Attributes:
        kind: value of ``iter_type`` (``ITER_UBUF``, or ``ITER_IOVEC`` where the first is not known).
        data_source: offset of the byte that is 1 where the buffer is read from (a write system call).
        user_backed: offset of the byte that says that the buffer is the user's; None without.
        base: offset of the address (of a ``struct iovec`` where ``by_vector``).
        by_vector: the buffer is described by an array of ``struct iovec``.
    """

    kind: int
    data_source: int
    user_backed: int | None
    base: int
    count: int
    by_vector: bool = False
    iov_offset: int = 8
    nr_segs: int = 32
    size: int = 40


@dataclass(frozen=True, slots=True)
class FileStructs:
    """The structures of one kernel line.

    Attributes:
        operations: offsets in ``struct file_operations``.
        bin_attribute_mmap: offset of ``mmap`` in ``struct bin_attribute``.
    """

    operations: Mapping[str, int]
    file: FileLayout
    inode: InodeLayout
    vma: VmaLayout
    fault: FaultLayout
    iter: IterLayout
    bin_attribute_mmap: int = 56


def _members(*names: str) -> Mapping[str, int]:
    return MappingProxyType({name: 8 * index for index, name in enumerate(names)})


_HEAD = ("read", "write", "read_iter", "write_iter", "iopoll")
_BODY = ("iterate_shared", "poll", "unlocked_ioctl", "compat_ioctl", "mmap")
_TAIL = ("open", "flush", "release", "fsync", "fasync")
_OPERATIONS_5_15 = _members("owner", "llseek", *_HEAD, "iterate", *_BODY, "mmap_supported_flags", *_TAIL)
_OPERATIONS_6_6 = _members("owner", "llseek", *_HEAD, *_BODY, "mmap_supported_flags", *_TAIL)
_OPERATIONS_6_12 = _members("owner", "fop_flags", "llseek", *_HEAD, *_BODY, *_TAIL)

_FILE_5_15 = FileLayout(
    size=288,
    f_mode=68,
    f_op=40,
    f_mapping=232,
    private_data=216,
    f_inode=32,
    f_flags=64,
    f_path=16,
    f_pos=120,
    f_count=56,
)
_FILE_6_6 = FileLayout(
    size=288,
    f_mode=20,
    f_op=192,
    f_mapping=232,
    private_data=216,
    f_inode=184,
    f_flags=88,
    f_path=168,
    f_pos=80,
    f_count=24,
)
_FILE_6_12 = FileLayout(
    size=256, f_mode=12, f_op=16, f_mapping=24, private_data=32, f_inode=40, f_flags=48, f_path=64, f_pos=128, f_count=0
)
_OLD_FAULT = FaultLayout(address=24, real_address=None, flags=32, page=72)
_FAULT = FaultLayout(address=24, real_address=32, flags=40, page=80)

_LINES = {
    (5, 15): FileStructs(
        operations=_OPERATIONS_5_15,
        file=_FILE_5_15,
        inode=InodeLayout(size=768, i_cdev=688, i_private=728),
        vma=VmaLayout(
            size=256, vm_page_prot=72, vm_flags=80, vm_ops=144, vm_pgoff=152, vm_file=160, vm_private_data=168
        ),
        fault=_OLD_FAULT,
        iter=IterLayout(kind=0, data_source=2, user_backed=None, count=16, base=24, by_vector=True),
    ),
    (6, 1): FileStructs(
        operations=_OPERATIONS_5_15,
        file=_FILE_5_15,
        inode=InodeLayout(size=736, i_cdev=656, i_private=696),
        vma=VmaLayout(
            size=256, vm_page_prot=24, vm_flags=32, vm_ops=120, vm_pgoff=128, vm_file=136, vm_private_data=144
        ),
        fault=_FAULT,
        iter=IterLayout(kind=0, data_source=2, user_backed=3, count=16, base=24, by_vector=True),
    ),
    (6, 6): FileStructs(
        operations=_OPERATIONS_6_6,
        file=_FILE_6_6,
        inode=InodeLayout(size=736, i_cdev=656, i_private=696),
        vma=VmaLayout(
            size=256, vm_page_prot=24, vm_flags=32, vm_ops=112, vm_pgoff=120, vm_file=128, vm_private_data=136
        ),
        fault=_FAULT,
        iter=IterLayout(kind=5, data_source=3, user_backed=4, count=24, base=16),
    ),
    (6, 12): FileStructs(
        operations=_OPERATIONS_6_12,
        file=_FILE_6_12,
        inode=InodeLayout(size=736, i_cdev=656, i_private=696),
        vma=VmaLayout(size=256, vm_page_prot=24, vm_flags=32, vm_ops=72, vm_pgoff=80, vm_file=88, vm_private_data=96),
        fault=_FAULT,
        iter=IterLayout(kind=0, data_source=2, user_backed=None, count=24, base=16),
        bin_attribute_mmap=64,
    ),
}


def file_structs(version: tuple[int, int]) -> FileStructs:
    """The row of a kernel line; of the newest known one that is not newer than ``version``."""
    return _LINES[max((known for known in _LINES if known <= version), default=min(_LINES))]


#: ``struct proc_ops``, by the names that the same functions have in ``struct file_operations``.
PROC_OPERATIONS: Mapping[str, int] = MappingProxyType(
    {
        "open": 8,
        "read": 16,
        "read_iter": 24,
        "write": 32,
        "llseek": 40,
        "release": 48,
        "poll": 56,
        "unlocked_ioctl": 64,
        "compat_ioctl": 72,
        "mmap": 80,
    }
)


class SeqFile:
    """``struct seq_file``: byte offsets."""

    BUF, SIZE, FROM, COUNT, PAD_UNTIL, INDEX, READ_POS, LOCK = 0, 8, 16, 24, 32, 40, 48, 56
    OP, POLL_EVENT, FILE, PRIVATE = 104, 112, 120, 128
    BYTES = 136


class SeqOperations:
    """``struct seq_operations``: byte offsets."""

    START, STOP, NEXT, SHOW = 0, 8, 16, 24
    BYTES = 32


class Cdev:
    """``struct cdev``: byte offsets; a ``struct kobject`` comes first."""

    OWNER, OPS, LIST, DEV, COUNT = 96, 104, 112, 128, 132
    BYTES = 136


class MiscDevice:
    """``struct miscdevice``: byte offsets."""

    MINOR, NAME, FOPS, LIST, PARENT, THIS_DEVICE, GROUPS, NODENAME, MODE = 0, 8, 16, 24, 40, 48, 56, 64, 72


class Kobject:
    """``struct kobject`` and the structures around it: byte offsets."""

    NAME, ENTRY, PARENT, KSET, KTYPE, SD, KREF, STATE = 0, 8, 24, 32, 40, 48, 56, 60
    BYTES = 96
    TYPE_RELEASE, TYPE_OPS, TYPE_GROUPS = 0, 8, 16
    KSET_LIST, KSET_KOBJ, KSET_UEVENT = 0, 24, 120
    KSET_BYTES = 160


class Attribute:
    """``struct attribute``, what wraps it, and ``struct attribute_group``: byte offsets.

    ``SHOW`` and ``STORE`` are those of ``struct device_attribute``, ``kobj_attribute``, ``class_attribute``, ``driver_attribute``.
    """

    NAME, MODE, SHOW, STORE = 0, 8, 16, 24
    GROUP_NAME, GROUP_VISIBLE, GROUP_BIN_VISIBLE, GROUP_ATTRS, GROUP_BINS = 0, 8, 16, 24, 32
    BIN_SIZE, BIN_PRIVATE, BIN_READ, BIN_WRITE = 16, 24, 40, 48


class DeviceTail:
    """Members of ``struct device`` behind ``of_node``, as distances from it."""

    DEVT, ID, CLASS, GROUPS, RELEASE = 16, 20, 48, 56, 64


class ClassLayout:
    """``struct class``: ``owner`` comes second up to 6.3, so the groups lie 8 bytes further there."""

    NAME = 0
    BYTES = 160
    #: Offsets of class_groups, dev_groups, devnode, dev_release.
    WITH_OWNER = (16, 24, 48, 64)
    WITHOUT_OWNER = (8, 16, 32, 48)


#: ``struct dentry``: parent, name (``d_name.name``), inode, its size.
DENTRY_PARENT, DENTRY_NAME, DENTRY_INODE, DENTRY_BYTES = 24, 40, 48, 192
