"""What the build pipeline needs to know about each Android generation, as data.

Facts: ``arch/arm64/kvm/hyp/nvhe/{module.lds.S,Makefile.nvhe}``, ``arch/arm64/include/asm/module.lds.h`` and the
GKI configuration of each branch.
"""

from __future__ import annotations

from dataclasses import dataclass

from pkvm_emu.abi.generation import Generation, generation, latest


@dataclass(frozen=True)
class HypSection:
    """One EL2 output section of a module.

    ``inputs`` are linker-script input patterns that the hyp-side partial link collects into ``name``.
    ``start_symbol`` and ``end_symbol`` bracket the content where EL2 code refers to it by address.
    """

    name: str
    inputs: tuple[str, ...]
    start_symbol: str | None = None
    end_symbol: str | None = None


@dataclass(frozen=True)
class BuildGeneration:
    """How modules of one Android generation are compiled and linked; what the emulator knows too is taken from ``abi``.

    ``patch_level`` is the third number of the kernel release. ``canary_offset`` is the byte offset of the stack canary from
    SP_EL0 (``task_struct.stack_canary``). ``sections`` are the EL2 sections in their order in the module,
    ``unmapped_sections`` those that EL2 code takes addresses in but that are not mapped there (and that the module's
    linker script does not name).
    """

    abi: Generation
    patch_level: int
    canary_offset: int
    sections: tuple[HypSection, ...]
    unmapped_sections: tuple[HypSection, ...] = ()

    @property
    def name(self) -> str:
        """``android16-6.12``"""
        return self.abi.name

    @property
    def android(self) -> int:
        """The Android version."""
        return self.abi.android

    @property
    def kernel(self) -> tuple[int, int, int]:
        """The kernel release in numbers."""
        return (*self.abi.kernel, self.patch_level)

    @property
    def el1_kcfi(self) -> bool:
        """EL1 code is compiled with kCFI. (5.15 has jump-table CFI, which modules of ours do without.)"""
        return self.abi.el1_kcfi in _KCFI

    @property
    def el2_kcfi(self) -> bool:
        """EL2 code is compiled with kCFI."""
        return self.abi.el2_kcfi in _KCFI

    @property
    def normalized_cfi(self) -> bool:
        """kCFI type ids have integer types normalised, as android16 GKI does."""
        return self.abi.el1_kcfi == "normalised"

    @property
    def release(self) -> str:
        """The kernel release string, as ``uname -r`` gives it and as KERNELRELEASE is set."""
        return f"{'.'.join(map(str, self.kernel))}-android{self.android}-0-pkvm-emu"

    @property
    def vermagic(self) -> str:
        """The ``vermagic=`` string of ``.modinfo``."""
        return f"{self.release} SMP preempt mod_unload modversions aarch64"


_KCFI = frozenset(("plain", "normalised"))
_TEXT = HypSection(".hyp.text", ("*(.text .text.*)",))
_BSS = HypSection(".hyp.bss", ("*(.bss .bss.*)",))
_RODATA = HypSection(".hyp.rodata", ("*(.rodata .rodata.*)",))
_DATA = HypSection(".hyp.data", ("*(.data .data.*)",))
_EVENT_IDS_A15 = HypSection(
    ".hyp.event_ids",
    ("*(SORT(.hyp.event_ids.*))", "*(.hyp.event_ids)"),
    "__hyp_event_ids_start",
    "__hyp_event_ids_end",
)
_EVENT_IDS_A16 = HypSection(
    ".hyp.event_ids", ("*(SORT(.hyp.event_ids.*))", "*(.hyp.event_ids)", "*(.hyp.printk_fmt_offset)")
)
_PATCHABLE = HypSection(
    ".hyp.patchable_function_entries",
    ("*(__patchable_function_entries)",),
    "__hyp_patchable_function_entries_start",
    "__hyp_patchable_function_entries_end",
)

_PRINTK_FORMATS = HypSection(
    ".hyp.printk_fmts", ("*(.hyp.printk_fmts)",), "__hyp_printk_fmts_start", "__hyp_printk_fmts_end"
)
GENERATIONS: tuple[BuildGeneration, ...] = (
    BuildGeneration(generation("android14-5.15"), 167, 0x550, (_TEXT, _BSS, _RODATA, _DATA)),
    BuildGeneration(generation("android14-6.1"), 118, 0x550, (_TEXT, _BSS, _RODATA, _DATA)),
    BuildGeneration(generation("android15-6.6"), 66, 0x620, (_TEXT, _BSS, _RODATA, _EVENT_IDS_A15, _DATA)),
    BuildGeneration(
        generation("android16-6.12"),
        23,
        0x550,
        (_TEXT, _BSS, _RODATA, _EVENT_IDS_A16, _PATCHABLE, _DATA),
        (_PRINTK_FORMATS,),
    ),
)

DEFAULT_GENERATION = latest.name


def find_generation(name: str | None) -> BuildGeneration:
    """The build facts of the generation called *name*; None means the newest.

    Accepts what ``abi.generation`` accepts (``android16-6.12``, ``android16``, ``16``, ``6.12``).
    Raises UsageError for a name nobody knows.
    """
    wanted = generation(name)
    return next(row for row in GENERATIONS if row.abi is wanted)
