"""The life of a module in the kernel: placed, linked, patched, initialised, and what it leaves behind."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pkvm_emu.abi.errno import errno_name
from pkvm_emu.elf import static_keys
from pkvm_emu.elf.alternatives import apply_alternatives
from pkvm_emu.elf.detect import detect_generation_name
from pkvm_emu.elf.elements import NVHE_PREFIX, SHN_UNDEF, STB_WEAK
from pkvm_emu.elf.imports import ImportUse, import_uses
from pkvm_emu.elf.layout import Layout, Region
from pkvm_emu.elf.link import LinkedImage, Resolver, link
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.elf.symbols import Symboliser
from pkvm_emu.errors import EmulatorError, ModuleError, UsageError
from pkvm_emu.kernel import layout as kernel_layout
from pkvm_emu.kernel.module_events import COMING, GOING, LIVE, announce_module
from pkvm_emu.kernel.module_imports import Imports, is_proprietary, licence_of
from pkvm_emu.kernel.page_allocator import MAX_ORDER
from pkvm_emu.kernel.static_keys import state_of
from pkvm_emu.machine.state import Journal, State, StateDict, StateList

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

PAGE_SIZE = kernel_layout.PAGE_SIZE
EPERM, ENOENT, ENOEXEC, ENOMEM, EEXIST = 1, 2, 8, 12, 17
_RO_AFTER_INIT = "ro_after_init"
#: MRS of CNTPCT_EL0 or CNTVCT_EL0.
#: MRS Xt, MPIDR_EL1.
_MPIDR_READ = re.compile(rb"[\xa0-\xbf]\x00\x38\xd5", re.DOTALL)
_COUNTER_READ = re.compile(rb"[\x20-\x5f]\xe0\x3b\xd5", re.DOTALL)


class ModuleLoadError(ModuleError):
    """A module that did not load.

    Attributes:
        errno: negative, as the kernel's ``init_module`` system call returns it.
        module: the module that failed: the one that was asked for, or one that it depends on.
        step: where: ``lookup``, ``dependencies``, ``blocklist``, ``link``, ``memory``, ``parameters``, ``init``, or what of the
            EL2 half's loading failed inside ``init`` (``EL2 address space``, ``EL2 imports``, ``EL2 mapping``, ``EL2 init``, ...).
    """

    def __init__(self, message: str, errno: int, module: str = "", step: str = "link") -> None:
        super().__init__(message)
        self.errno = errno
        self.module = module
        self.step = step


class LoadedModule(State):
    """A module in the kernel.

    Attributes:
        name: as ``lsmod`` prints it.
        status: ``coming`` while its init function runs, then ``live``; ``gone`` when init failed.
        init_result: what its init function returned.
        token: the module token (hyp VA of the lowest EL2 section), 0 before the EL2 half is loaded.
        references: pins; a loaded EL2 half holds one for ever, and so does each module in ``users``.
        users: the modules that use symbols of this one.
        proprietary: its licence, or that of a module whose symbols it uses, is not compatible with the GPL.
        el2_failure: the step of loading the EL2 half that failed, and its errno; empty and 0 otherwise.
        hypercalls: ids of registered hypercalls by the name of their EL2 function (without ``__kvm_nvhe_``).
    """

    def __init__(self, journal: Journal, file: ModuleFile, image: LinkedImage) -> None:
        super().__init__(journal)
        self._file = file
        self._image = image
        self._symboliser = Symboliser(image, file.name)
        self.name = file.name
        self.status = "coming"
        self.init_result = 0
        self.token = 0
        self.references = 0
        self.hyp_init = 0
        self.proprietary = False
        self.el2_failure: tuple[str, int] = ("", 0)
        self.hypercalls: StateDict[str, int] = StateDict(journal)
        self.users: StateList[str] = StateList(journal)
        #: Blocks of pages by EL1 address: PA and order.
        self.blocks: StateDict[int, tuple[int, int]] = StateDict(journal)

    @property
    def file(self) -> ModuleFile:
        """The ELF file it came from."""
        return self._file

    @property
    def image(self) -> LinkedImage:
        """Its linked image (EL1 addresses)."""
        return self._image

    @property
    def layout(self) -> Layout:
        """Where its sections are at EL1."""
        return self._image.layout

    @property
    def hyp_delta(self) -> int:
        """EL2 address minus EL1 address of its EL2 sections; 0 before they are loaded."""
        return self.token - self.layout.hyp_base if self.token else 0

    def symbol(self, name: str) -> int | None:
        """EL1 address of one of its symbols."""
        return self._image.symbol_va(name)

    def el2_symbol(self, name: str) -> int | None:
        """EL2 address of a symbol of the EL2 half, given with or without ``__kvm_nvhe_``."""
        va = self._image.symbol_va(NVHE_PREFIX + name.removeprefix(NVHE_PREFIX))
        return va + self.hyp_delta if va is not None and self.token else None

    def contains(self, va: int) -> bool:
        """Whether an EL1 address is inside."""
        return self._image.contains(va)

    def counter_reads(self, el: int) -> list[int]:
        """Addresses at ``el`` of the instructions of that half of the module that read the generic counter."""
        return self._find_instructions(_COUNTER_READ, el)

    def cpu_id_reads(self, el: int) -> list[int]:
        """The same for those that read MPIDR_EL1."""
        return self._find_instructions(_MPIDR_READ, el)

    def _find_instructions(self, pattern: re.Pattern[bytes], el: int) -> list[int]:
        delta = self.hyp_delta if el == 2 else 0
        found = []
        for index, va in self.layout.placements.items():
            section = self._file.sections[index]
            if section.is_code and section.name.startswith(".hyp.") == (el == 2):
                text = self._image.read(va, section.size)
                found += [va + delta + m.start() for m in pattern.finditer(text) if not m.start() & 3]
        return found

    def describe(self, va: int) -> str | None:
        """``symbol+0x10/0x40 [module]`` for an EL1 address inside."""
        return self._symboliser.format_address(va)


class ModuleLoader(State):
    """Loads modules into a kernel, in the order of the steps of ``kernel/module/main.c``."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.modules")
        self._kernel = kernel
        self.modules: StateDict[str, LoadedModule] = StateDict(kernel.machine.journal, "kernel.modules.list")

    def find(self, va: int) -> LoadedModule | None:
        """The module that an EL1 address belongs to."""
        for module in self.modules.values():
            if module.contains(va):
                return module
        return None

    def load(self, file: ModuleFile, parameters: list[tuple[str, str | None]] | None = None) -> LoadedModule:
        """Load a module and run its init function.

        Args:
            file: the module.
            parameters: ``(name, value)`` pairs, applied in order before init; None as value is a bare name.

        Raises:
            ModuleLoadError: with the errno that ``insmod`` would report, and why.
        """
        kernel = self._kernel
        if file.name in self.modules:
            raise ModuleLoadError(f"{file.name} is loaded already (-EEXIST)", -EEXIST, file.name, "lookup")
        self._check_blacklist(file)
        self._check_generation(file)
        if file.inlined_shadow is not None:
            from pkvm_emu.kernel.kasan_shadow import KasanShadow

            kernel.part(KasanShadow).open(file.inlined_shadow)
        module = self._place(file)
        self.modules[module.name] = module
        self._use_exporters(module)
        try:
            kernel.machine.core.code_epoch += 1
            kernel.machine.engine.flush_code()
            kernel.machine.core.hook_counter_reads(module.counter_reads(el=1))
            self._apply_parameters(module, parameters or [])
            announce_module(kernel, module, COMING)
            result = self._run_init(module)
        except BaseException:
            # A run that stopped inside the init function leaves the module for inspection.
            module.status = "stopped"
            raise
        module.init_result = result
        if result < 0:
            announce_module(kernel, module, GOING)
            self._forget(module)
            step, error = module.el2_failure
            after = f", after its {step} failed ({errno_name(error)})" if step else ""
            raise ModuleLoadError(
                f"{file.name}: its init function returned {result} ({errno_name(result)}){after}",
                result,
                file.name,
                step or "init",
            )
        module.status = "live"
        announce_module(kernel, module, LIVE)
        self._finish(module)
        # What init queued would have run beside it on another CPU.
        kernel.run_ready()
        return module

    # Steps

    def _check_generation(self, file: ModuleFile) -> None:
        found = detect_generation_name(file)
        wanted = self._kernel.generation.name
        if found.name is not None and found.name != wanted:
            self._kernel.log.write(
                f"{file.name}: built for {found.name} ({found.reason}), running on {wanted}", level=4
            )
        bits = file.va_bits
        running = self._kernel.memory.layout.va_bits
        if bits is not None and bits.bits != running:
            self._kernel.log.write(
                f"{file.name}: compiled for {bits.bits}-bit addresses ({bits.reason}), running with {running}", level=4
            )
        if not file.modinfo.get("intree") and "O" not in self._kernel.tainted:
            self._kernel.tainted += "O"
            self._kernel.log.write(f"{file.name}: loading out-of-tree module taints kernel.", level=4)
        if is_proprietary(file) and "P" not in self._kernel.tainted:
            self._kernel.tainted += "P"
            self._kernel.log.write(f"{file.name}: module license '{licence_of(file)}' taints kernel.", level=4)
            self._kernel.log.write("Disabling lock debugging due to kernel taint", level=4)

    def _check_blacklist(self, file: ModuleFile) -> None:
        listed = (self._kernel.command_line.get("module_blacklist") or "").split(",")
        if file.name in listed:
            self._kernel.log.write(f"Module {file.name} is blacklisted", level=3)
            raise ModuleLoadError(f"{file.name}: module_blacklist= names it (-EPERM)", -EPERM, file.name, "blocklist")

    def _place(self, file: ModuleFile) -> LoadedModule:
        kernel = self._kernel
        base = kernel.memory.next_module
        layout = Layout.assign(file, base)
        try:
            kernel.memory.reserve_module_area(layout.size)
        except EmulatorError as error:
            kernel.memory.next_module = base
            raise ModuleLoadError(f"{file.name}: {error} (-ENOMEM)", -ENOMEM, file.name, "memory") from error
        imports = Imports(kernel, file, self.modules)
        image = link(file, layout, self._resolve(file, imports))
        self._refuse_unresolved(file, image, imports)
        self._patch(image)
        module = LoadedModule(kernel.machine.journal, file, image)
        module.proprietary = imports.proprietary
        try:
            for region in layout.regions:
                self._map_region(module, region)
        except ModuleLoadError:
            self._release(module, layout.regions)
            raise
        return module

    def _use_exporters(self, module: LoadedModule) -> None:
        wanted = {symbol.name for symbol in module.file.undefined_symbols()}
        for exporter in self.modules.values():
            if exporter is not module and wanted & {export.name for export in exporter.file.exports}:
                exporter.users.append(module.name)
                exporter.references += 1

    def drop_uses(self, module: LoadedModule) -> None:
        """The module goes: those whose symbols it used have one user less."""
        for exporter in self.modules.values():
            if module.name in exporter.users:
                exporter.users.remove(module.name)
                exporter.references -= 1

    def _resolve(self, file: ModuleFile, imports: Imports) -> Resolver:
        symbols = self._kernel.symbols
        places = {
            symbol.name: companion
            for symbol in file.undefined_symbols()
            if symbol.name not in imports and (companion := symbols.companion(symbol.name, file.depends)) is not None
        }
        missing = [] if self._kernel.stubs_missing else self._missing(file, places.values())
        weak = {symbol.name for symbol in file.symbols if symbol.shndx == SHN_UNDEF and symbol.bind == STB_WEAK}
        uses = import_uses(file)

        def resolve(name: str) -> int | None:
            if name in imports:
                return imports.resolve(name)
            # These only another module can give: a stub would hide a missing dependency.
            if name.startswith(NVHE_PREFIX) or (missing and not symbols.serves(name)):
                return None
            # Code tests whether a weak symbol is there: it must not be a stub that stops.
            if name in weak and not symbols.serves(name):
                return None
            if name in places:
                symbols.companions[name] = places[name]
            return symbols.resolve(name, uses.get(name, ImportUse.CALL))

        return resolve

    def _missing(self, file: ModuleFile, stood_in: Iterable[str] = ()) -> list[str]:
        """The dependencies that are not loaded and that no Python stands in for."""
        there = {*self.modules, *map(_normal, stood_in)}
        return [name for name in file.depends if _normal(name) not in there]

    def _refuse_unresolved(self, file: ModuleFile, image: LinkedImage, imports: Imports) -> None:
        refused = imports.refused
        # A weak symbol may be missing, but not be refused.
        strong = [
            s for s in image.unresolved if not s.is_weak or (s.name in refused and refused[s.name].errno != -ENOENT)
        ]
        if not strong:
            return self._refuse_duplicate(file, imports)
        for symbol in strong:
            errno = refused[symbol.name].errno if symbol.name in refused else -ENOENT
            self._kernel.log.write(f"{file.name}: Unknown symbol {symbol.name} (err {errno})", level=4)
        first = next((symbol for symbol in strong if symbol.name in refused), strong[0])
        if first.name in refused:
            # The kernel returns what its last symbol gave.
            last = refused.get(strong[-1].name)
            errno = last.errno if last is not None else -ENOENT
            reason = refused[first.name].reason
            raise ModuleLoadError(
                f"{file.name}: symbol {first.name} is refused ({errno_name(errno)}): {reason}", errno, file.name
            )
        where = f", used at {first.first_use.text}" if first.first_use else ""
        waiting = ", ".join(self._missing(file, self._kernel.symbols.companions.values()))
        hint = "; no loaded module exports it"
        if waiting:
            hint = f"; give {waiting} before it, serve its symbols from Python (--kernel FILE), or try --stub-missing"
        raise ModuleLoadError(f"{file.name}: unknown symbol {first.name}{where} (-ENOENT){hint}", -ENOENT, file.name)

    def _refuse_duplicate(self, file: ModuleFile, imports: Imports) -> None:
        found = imports.duplicate()
        if found is not None:
            name, owner = found
            self._kernel.log.write(f"{file.name}: exports duplicate symbol {name} (owned by {owner})", level=3)
            raise ModuleLoadError(
                f"{file.name}: exports {name}, which {owner} exports already (-ENOEXEC)", -ENOEXEC, file.name
            )

    def _patch(self, image: LinkedImage) -> None:
        kernel = self._kernel
        capabilities = kernel.capability_numbers()
        apply_alternatives(image, capabilities.__contains__)
        for entry in static_keys.static_keys(image):
            if kernel.symbols.plain_keys.get(entry.key) is False:
                kernel.symbols.plain_keys[entry.key] = True
                kernel.memory.write_u32(entry.key_va, static_keys.compiled_state(image, entry))
            enabled = state_of(kernel, entry.key, entry.key_offset)
            if enabled is not None:
                static_keys.apply_static_key(image, entry.key, enabled, entry.key_offset)

    def _map_region(self, module: LoadedModule, region: Region) -> None:
        kernel = self._kernel
        image = module.image
        data = image.region_bytes(region)
        # Its variables are set by the init function; _finish takes the right to write away.
        prot = "rw" if region.name == _RO_AFTER_INIT else region.prot
        position = 0
        while position < region.size:
            pages = (region.size - position) // PAGE_SIZE
            order = min(pages.bit_length() - 1, MAX_ORDER)
            pa = kernel.pages.alloc_pages(order)
            if pa is None:
                name = image.module.name
                raise ModuleLoadError(f"{name}: no memory for {region.name} (-ENOMEM)", -ENOMEM, name, "memory")
            size = PAGE_SIZE << order
            kernel.machine.ram.write(pa, bytes(data[position : position + size]).ljust(size, b"\0"))
            module.blocks[region.va + position] = (pa, order)
            kernel.memory.map(region.va + position, pa, size, prot, guarded=kernel.machine.profile.bti)
            position += size

    def _finish(self, module: LoadedModule) -> None:
        """After a good init: what is read-only from now on, and the memory of the init sections."""
        for region in module.layout.regions:
            if region.name == _RO_AFTER_INIT:
                for va, (pa, order) in self._blocks_of(module, region):
                    self._kernel.memory.map(va, pa, PAGE_SIZE << order, region.prot)
        self._release(module, [region for region in module.layout.regions if region.name.startswith("init.")])

    def _forget(self, module: LoadedModule) -> None:
        """After a failed init: the module's memory is free again, but for what the hypervisor has taken."""
        module.status = "gone"
        del self.modules[module.name]
        self.drop_uses(module)
        kept = module.token != 0
        self._release(module, [r for r in module.layout.regions if not (kept and r.name.startswith(".hyp."))])

    def _release(self, module: LoadedModule, regions: Iterable[Region]) -> None:
        kernel = self._kernel
        for region in regions:
            for va, (pa, order) in self._blocks_of(module, region):
                kernel.memory.unmap(va, PAGE_SIZE << order)
                kernel.pages.free_pages(pa, order)
                del module.blocks[va]
        kernel.machine.core.code_epoch += 1
        kernel.machine.engine.flush_code()

    @staticmethod
    def _blocks_of(module: LoadedModule, region: Region) -> list[tuple[int, tuple[int, int]]]:
        end = region.va + region.size
        return [(va, block) for va, block in module.blocks.items() if region.va <= va < end]

    def _apply_parameters(self, module: LoadedModule, parameters: list[tuple[str, str | None]]) -> None:
        known = {parameter.name: parameter for parameter in self._kernel.parameters.of(module)}
        for name, value in parameters:
            parameter = known.get(name.replace("-", "_"))
            if parameter is None:
                self._kernel.log.write(f"{module.name}: unknown parameter '{name}' ignored", level=4)
                continue
            result = self._kernel.parameters.set(parameter, value)
            if result < 0:
                text = "" if value is None else value
                self._kernel.log.write(f"{module.name}: `{text}' invalid for parameter `{name}'", level=3)
                self._forget(module)
                raise ModuleLoadError(
                    f"{module.name}: parameter {name}={text} was refused ({errno_name(result)})",
                    result,
                    module.name,
                    "parameters",
                )

    def _run_init(self, module: LoadedModule) -> int:
        init = module.symbol("init_module")
        if init is None and not module.file.has_el2:
            return 0
        if init is None:
            raise UsageError(f"{module.file.file_name}: has no init_module, so nothing of it would run")
        return self._kernel.call_s32(init)


def _normal(name: str) -> str:
    """Module names with dashes and underscores mean the same."""
    return name.replace("-", "_")
