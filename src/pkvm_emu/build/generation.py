"""What the build pipeline needs to know about each Android generation, as data.

Facts: ``arch/arm64/kvm/hyp/nvhe/{module.lds.S,Makefile.nvhe}``, ``arch/arm64/include/asm/module.lds.h`` and the
GKI configuration of each branch.
"""

from __future__ import annotations

from dataclasses import dataclass

from pkvm_emu.errors import UsageError


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
    """How modules of one Android generation are compiled and linked.

    ``canary_offset`` is the byte offset of the stack canary from SP_EL0 (``task_struct.stack_canary``);
    ``normalized_cfi`` selects kCFI type ids with integer types normalised, as android16 GKI does. ``sections`` are the
    EL2 sections in their order in the module, ``unmapped_sections`` those that EL2 code takes addresses in but that
    are not mapped there (and that the module's linker script does not name).
    """

    name: str
    android: int
    kernel: tuple[int, int, int]
    canary_offset: int
    el1_kcfi: bool
    el2_kcfi: bool
    normalized_cfi: bool
    sections: tuple[HypSection, ...]
    unmapped_sections: tuple[HypSection, ...]
    aliases: tuple[str, ...]

    @property
    def release(self) -> str:
        """The kernel release string, as ``uname -r`` gives it and as KERNELRELEASE is set."""
        return f"{'.'.join(map(str, self.kernel))}-android{self.android}-0-pkvm-emu"

    @property
    def vermagic(self) -> str:
        """The ``vermagic=`` string of ``.modinfo``."""
        return f"{self.release} SMP preempt mod_unload modversions aarch64"


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
    BuildGeneration(
        name="android14-6.1",
        android=14,
        kernel=(6, 1, 118),
        canary_offset=0x550,
        el1_kcfi=True,
        el2_kcfi=False,
        normalized_cfi=False,
        sections=(_TEXT, _BSS, _RODATA, _DATA),
        unmapped_sections=(),
        aliases=("android14", "14", "6.1"),
    ),
    BuildGeneration(
        name="android15-6.6",
        android=15,
        kernel=(6, 6, 66),
        canary_offset=0x620,
        el1_kcfi=True,
        el2_kcfi=True,
        normalized_cfi=False,
        sections=(_TEXT, _BSS, _RODATA, _EVENT_IDS_A15, _DATA),
        unmapped_sections=(),
        aliases=("android15", "15", "6.6"),
    ),
    BuildGeneration(
        name="android16-6.12",
        android=16,
        kernel=(6, 12, 23),
        canary_offset=0x550,
        el1_kcfi=True,
        el2_kcfi=True,
        normalized_cfi=True,
        sections=(_TEXT, _BSS, _RODATA, _EVENT_IDS_A16, _PATCHABLE, _DATA),
        unmapped_sections=(_PRINTK_FORMATS,),
        aliases=("android16", "16", "6.12"),
    ),
)

DEFAULT_GENERATION = "android16-6.12"


def find_generation(name: str | None) -> BuildGeneration:
    """The build facts of the generation called *name*; None means the newest.

    Accepts the full name (``android16-6.12``) or a short one (``android16``, ``16``, ``6.12``).
    Raises UsageError for a name nobody knows.
    """
    wanted = name or DEFAULT_GENERATION
    for generation in GENERATIONS:
        if wanted == generation.name or wanted in generation.aliases:
            return generation
    known = ", ".join(generation.name for generation in GENERATIONS)
    raise UsageError(f"no Android generation called {wanted!r}: use one of {known}")
