"""Loading the EL2 half of a module and registering its hypercalls: the EL1 side of pKVM modules.

The steps are those of ``__pkvm_load_el2_module`` (``arch/arm64/kvm/pkvm.c``), and every one that is a hypercall there is a
real HVC here.
"""

from __future__ import annotations

from errno import EINVAL, ENODEV, ENOMEM, EOPNOTSUPP, EPERM
from typing import NamedTuple

from pkvm_emu.elf import hyprel
from pkvm_emu.elf.arch_hyp import find_init_slot
from pkvm_emu.errors import ModuleError
from pkvm_emu.kernel.el2_imports import patch_imports
from pkvm_emu.kernel.guest_access import hypercall_number
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.modules import LoadedModule
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import Ptr

PAGE_SIZE, PAGE_SHIFT, PAGE_MASK = 4096, 12, 4095
_HCALL_BASE = 0xC600_0000
_SMCCC_SUCCESS = 0
_U64 = (1 << 64) - 1
#: Tables that ``struct pkvm_el2_module`` counts: pointer field, section, count field, bytes an entry. Generations
#: without them have no such fields.
_TABLES = (
    ("hyp_events", "_hyp_events", "nr_hyp_events", 72),
    ("hyp_printk_fmts", ".hyp.printk_fmts", "nr_hyp_printk_fmts", 128),
)


class El2Section(NamedTuple):
    """One descriptor of ``struct pkvm_el2_module``: its field, where the section is at EL1, its protection at EL2."""

    field: str
    start: int
    end: int
    prot: int


def _s32(value: int) -> int:
    value &= 0xFFFF_FFFF
    return value - (1 << 32) if value >> 31 else value


def hypercall(kernel: Kernel, name: str, *args: int) -> tuple[int, ...]:
    """``kvm_call_hyp_nvhe``: a host hypercall by name; x0..x7 after it. Raises as :func:`hypercall_number`."""
    return kernel.hvc(_HCALL_BASE | hypercall_number(kernel, name), *args)


@kernel_symbol("__pkvm_load_el2_module", runs_guest=True)
def pkvm_load_el2_module(kernel: Kernel, this_module: Ptr, token: Ptr) -> int:
    """Load the EL2 half of a module: map it at EL2, relocate it, call its EL2 init.

    Args:
        this_module: ``THIS_MODULE``; the macro has stored the init function in ``arch.hyp.init``.
        token: where the module token (hyp VA of the lowest section) goes; android16 takes NULL.

    Returns:
        0, -EOPNOTSUPP without protected mode or after deprivilege, -EINVAL, -ENODEV, -EPERM, -ENOMEM, or what the EL2
        init returned.
    """
    if not kernel.protected or kernel.deprivileged:
        return -EOPNOTSUPP
    module = kernel.loader.find(this_module)
    if module is None:
        raise ModuleError(f"__pkvm_load_el2_module({this_module:#x}): that is no loaded module")
    load = _Load(kernel, module, this_module)
    result = load.run(token)
    if result:
        module.el2_failure = load.step, result
    return result


@kernel_symbol("__pkvm_register_el2_call", runs_guest=True)
def pkvm_register_el2_call(kernel: Kernel, function: Ptr) -> int:
    """Make an EL2 function (by hyp VA) a hypercall.

    Returns:
        The id (128 and up) or -ENOMEM. After deprivilege the hypercall is refused, and what is returned then is the low half
        of the function's address, as on a device: the ``ret < 0`` check of the documentation does not see it.
    """
    registers = hypercall(kernel, "register_hcall", function)
    if registers[0] != _SMCCC_SUCCESS:
        # kvm_call_hyp_nvhe() warns of every hypercall that was refused.
        pc = kernel.machine.engine.read("pc")
        kernel.faults.text.warning(kernel.generation.boot.register_call_place, kernel.describe(pc), pc)
    result = _s32(registers[1])
    if registers[0] == _SMCCC_SUCCESS and result >= 0:
        for module in kernel.loader.modules.values():
            place = function - module.hyp_delta - module.layout.hyp_base
            if module.token and 0 <= place < module.layout.hyp_size:
                found = module.image.symbolize(place + module.layout.hyp_base)
                if found is not None:
                    # A stripped module has sections and no names.
                    tail = f"+{found.offset:#x}" if found.offset else ""
                    module.hypercalls[found.name.removeprefix("__kvm_nvhe_") + tail] = result
    return result


class _Load:
    """One run of ``__pkvm_load_el2_module``."""

    def __init__(self, kernel: Kernel, module: LoadedModule, this_module: int) -> None:
        self._kernel = kernel
        self._module = module
        self._this_module = this_module
        self._generation = kernel.generation
        self._sections = self._find_sections()
        #: What is being done, for reports.
        self.step = "EL2 sections"

    def run(self, token: int) -> int:
        kernel, module = self._kernel, self._module
        descriptor = self._find_descriptor()
        for section in self._sections:
            if section.start & PAGE_MASK:
                kernel.kvm_log("EL2 sections are not page-aligned")
                return -EINVAL
        if module.status != "coming" and module.status != "live":
            kernel.kvm_log("Kernel module has been unloaded")
            return -ENODEV
        start = self._sections[0].start
        end = self._sections[-1].end
        pages = (end - start) >> PAGE_SHIFT
        self.step = "EL2 address space"
        answer = hypercall(kernel, "alloc_module_va", pages)
        hyp_va = answer[1]
        if answer[0] != _SMCCC_SUCCESS or not hyp_va:
            kernel.kvm_log("Failed to allocate hypervisor VA space for EL2 module")
            return -EPERM if answer[0] else -ENOMEM
        if token:
            kernel.memory.write_u64(token, hyp_va)
        module.token = hyp_va
        self._fill_descriptor(descriptor, start, end, hyp_va)
        slots = hyprel.hyp_relocation_slots(module.image)
        hyprel.rebase(slots, kernel.memory.read_u64, kernel.memory.write_u64, hyp_va - start)
        self.step = "EL2 imports"
        result = patch_imports(kernel, module)
        if result:
            module.token = 0
            return result
        kernel.machine.core.code_epoch += 1
        kernel.machine.engine.flush_code()
        kernel.prepare_el2(module)
        self.step = "EL2 mapping"
        result = self._map(hyp_va - start)
        if result:
            module.token = 0
            return result
        self.step = "EL2 init"
        result = self._init(descriptor, hyp_va - start)
        if result:
            kernel.kvm_log(f"Failed to init EL2 module: {result}")
            self._unmap_all(hyp_va, start)
            module.token = 0
            return result
        module.references += 1
        if "hyp_event" in kernel.command_line:
            from pkvm_emu.kernel.tracing.early import EarlyTracing

            kernel.part(EarlyTracing).module_loaded()
        return 0

    # Steps

    def _find_sections(self) -> list[El2Section]:
        found = []
        for row in self._generation.sections:
            section = self._module.file.section(row.elf_name)
            if section is None or not section.size or section.index not in self._module.layout.placements:
                continue
            start = self._module.layout.placements[section.index]
            found.append(El2Section(row.field, start, start + (section.size + PAGE_MASK & ~PAGE_MASK), row.prot))
        if not found:
            raise ModuleError(f"{self._module.name}: __pkvm_load_el2_module, but the module has no EL2 code")
        return sorted(found, key=lambda section: section.start)

    def _find_descriptor(self) -> int:
        """Address of ``arch.hyp``: from the init function that the macro has stored in it."""
        this = self._module.file.this_module
        text = next((s for s in self._sections if s.field == "text"), None)
        if this is None or text is None:
            raise ModuleError(f"{self._module.name}: no struct module or no .hyp.text to load at EL2")
        contents = self._kernel.memory.read(self._this_module, this.section.size)
        slot = find_init_slot(contents, (text.start, text.end))
        if slot is None:
            raise ModuleError(
                f"{self._module.name}: THIS_MODULE->arch.hyp.init holds no function of .hyp.text; the module was built "
                f"against other headers than pkvm_load_el2_module() expects"
            )
        self._module.hyp_init = self._kernel.memory.read_u64(self._this_module + slot)
        return self._this_module + slot - self._generation.el2_module.offset("init")

    def _fill_descriptor(self, descriptor: int, start: int, end: int, hyp_va: int) -> None:
        """What the kernel's module code stores in ``struct pkvm_el2_module``."""
        memory, layout = self._kernel.memory, self._generation.el2_module
        values = {"sections.start": start, "sections.end": end, "hyp_va": hyp_va, "token": hyp_va}
        for section in self._sections:
            values[f"{section.field}.start"] = section.start
            values[f"{section.field}.end"] = section.end
        relocs = self._module.file.section(".hyp.reloc")
        if relocs is not None and relocs.size and relocs.index in self._module.layout.placements:
            values["relocs"] = self._module.layout.placements[relocs.index]
            values["nr_relocs"] = relocs.size // 4
        for field, section_name, count, size in _TABLES:
            table = self._module.file.section(section_name)
            if table is not None and table.size and table.index in self._module.layout.placements:
                values[field] = self._module.layout.placements[table.index]
                values[count] = table.size // size
        for name, value in values.items():
            if name in layout.fields:
                offset, size = layout.fields[name]
                memory.write(descriptor + offset, value.to_bytes(size, "little"))

    def _pages(self) -> list[tuple[int, int]]:
        return [(va, s.prot) for s in self._sections for va in range(s.start, s.end, PAGE_SIZE)]

    def _map(self, delta: int) -> int:
        kernel = self._kernel
        done: list[int] = []
        for va, prot in self._pages():
            pfn = kernel.memory.to_pa(va) >> PAGE_SHIFT
            answer = hypercall(kernel, "map_module_page", pfn, va + delta, prot)
            result = _s32(answer[1]) if answer[0] == _SMCCC_SUCCESS else -EPERM
            if result:
                kernel.kvm_log(f"Failed to map EL2 module page: {result}")
                for mapped in done:
                    hypercall(kernel, "unmap_module_page", kernel.memory.to_pa(mapped) >> PAGE_SHIFT, mapped + delta)
                return result
            done.append(va)
        return 0

    def _unmap_all(self, hyp_va: int, start: int) -> None:
        """Take back what was mapped, after the EL2 init failed.

        android16 counts each page's offset from the first of all section descriptors, the absent ones (whose start is NULL)
        included: with one of them the address is not where anything was mapped, and the hypervisor answers with a BUG.
        """
        kernel = self._kernel
        first = start
        absent = len(self._sections) < len(self._generation.sections)
        if self._generation.boot.init_error_is_fatal and absent and not kernel.continues_on_init_failure:
            kernel.log.write(
                f"pkvm_emu: {self._module.name}: the EL2 init failed, and the kernel's error path now makes the hypervisor "
                "panic, as on a device; --continue-on-init-failure goes on instead",
                level=4,
            )
            first = 0
        for va, _ in self._pages():
            pfn = kernel.memory.to_pa(va) >> PAGE_SHIFT
            hypercall(kernel, "unmap_module_page", pfn, (va - first + hyp_va) & _U64)

    def _init(self, descriptor: int, delta: int) -> int:
        kernel = self._kernel
        if self._generation.init_module_arg != "struct_copy_kernel_va":
            answer = hypercall(kernel, "init_module", self._module.hyp_init + delta)
            return _s32(answer[1]) if answer[0] == _SMCCC_SUCCESS else -EPERM
        pa = kernel.pages.alloc_pages(0, zero=True)
        if pa is None:
            return -ENOMEM
        size = self._generation.el2_module.size
        kernel.machine.ram.write(pa, kernel.memory.read(descriptor, size))
        hypercall(kernel, "host_share_hyp", pa >> PAGE_SHIFT)
        answer = hypercall(kernel, "init_module", kernel.memory.linear_va(pa))
        hypercall(kernel, "host_unshare_hyp", pa >> PAGE_SHIFT)
        kernel.pages.free_pages(pa, 0)
        return _s32(answer[1]) if answer[0] == _SMCCC_SUCCESS else -EPERM
