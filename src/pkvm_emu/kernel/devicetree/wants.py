"""What a module asks a device tree for, read off its code before it runs.

Compatible strings come from ``of:`` aliases, ``of_device_id`` tables and calls of ``of_find_compatible_node``; property names
from the arguments of property readers. An argument counts where the code before the call loads the address of a constant
string into its register; names put together at run time are not seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.kernel.devicetree.layouts import MATCH_COMPATIBLE, MATCH_DATA, MATCH_SIZE, MATCH_TYPE

_R_CALL26, _R_JUMP26 = 283, 282
_R_ADD_LO12, _R_ABS64 = 277, 257
_STT_FUNC = 2
_PACIASP = 0xD503_233F
_CALLER_SAVED = 18
_SCAN_LIMIT = 400
_ALIAS = re.compile(r"^of:N(?P<name>[^T]*)T(?P<type>[^C]*)C(?P<compatible>.+)$")
_NAME = re.compile(r"^[A-Za-z0-9,._+#-]{1,63}$")
_COMPATIBLE = re.compile(r"^[A-Za-z0-9,._+-]{2,127}$")
#: Property readers: register of the name, and what is read.
_READERS = {
    "of_get_property": (1, "any"),
    "of_find_property": (1, "any"),
    "of_property_read_bool": (1, "flag"),
    "of_property_read_variable_u8_array": (1, "u8"),
    "of_property_read_variable_u16_array": (1, "u16"),
    "of_property_read_variable_u32_array": (1, "u32"),
    "of_property_read_variable_u64_array": (1, "u64"),
    "of_property_read_u32_index": (1, "u32"),
    "of_property_read_u64_index": (1, "u64"),
    "of_property_read_u64": (1, "u64"),
    "of_property_read_string": (1, "string"),
    "of_property_read_string_helper": (1, "string"),
    "of_property_match_string": (1, "strings"),
    "of_property_count_elems_of_size": (1, "u32"),
    "of_parse_phandle": (1, "phandle"),
    "__of_parse_phandle_with_args": (1, "phandle"),
    "of_count_phandle_with_args": (1, "phandle"),
    "device_property_present": (1, "flag"),
    "device_property_read_u8_array": (1, "u8"),
    "device_property_read_u16_array": (1, "u16"),
    "device_property_read_u32_array": (1, "u32"),
    "device_property_read_u64_array": (1, "u64"),
    "device_property_read_string": (1, "string"),
    "device_property_read_string_array": (1, "string"),
    "platform_get_resource_byname": (2, "reg-name"),
    "platform_get_irq_byname": (1, "irq-name"),
    "platform_get_irq_byname_optional": (1, "irq-name"),
    "of_get_child_by_name": (1, "child"),
}
#: Functions that take the number of a window or an interrupt, and the register of that number.
_WINDOWS = {
    "devm_platform_ioremap_resource": 1,
    "devm_platform_get_and_ioremap_resource": 1,
    "platform_get_resource": 2,
    "platform_get_mem_or_io": 1,
    "of_address_to_resource": 1,
    "of_iomap": 1,
}
_INTERRUPTS = {"platform_get_irq": 1, "platform_get_irq_optional": 1, "of_irq_get": 1, "irq_of_parse_and_map": 1}
_RUNTIME_PM = frozenset(("pm_runtime_enable", "devm_pm_runtime_enable"))
_POOL_PAGES = frozenset(("cma_alloc", "dma_alloc_from_contiguous"))
_TAKE_POOL = frozenset(("of_reserved_mem_device_init_by_idx", "of_reserved_mem_device_init_by_name"))
_COUNT_LIMIT = 32
_ROWS_LIMIT = 64
#: Bytes of code within which a call's result is taken to be the next one's argument.
_NEXT_CALL = 32
_COUNTED = {"u8", "u16", "u32", "u64"}


class Property(NamedTuple):
    """A property that a module reads: how, the least number of elements, and with a phandle what names its cells (or how many
    they are), as far as the code says.
    """

    name: str
    kind: str
    length: int = 1
    cells: str | int = 0


@dataclass
class Wants:
    """What one module asks for.

    Attributes:
        tables: compatible strings of each ``of_device_id`` table, in file order.
        nodes: compatible strings that nodes are looked up by.
        reserved: those of them whose node is then looked up as a region of reserved memory.
        names: names that nodes are looked up by.
        properties: by name, in the order of the code; the most telling reader wins.
        formats: strings with a ``%d`` that begin an alias' name.
        kinds: strings that a function of the module looks for in ``compatible``, in the order of the code: the kinds of device
            that it tells apart.
        windows: how many entries of ``reg`` it looks at.
        interrupts: how many interrupts it looks at.
        runtime_pm: its devices are powered on demand.
        contiguous: it allocates pages of its devices' pools itself.
    """

    tables: list[list[str]] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)
    reserved: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    properties: dict[str, Property] = field(default_factory=dict)
    formats: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    windows: int = 1
    interrupts: int = 1
    runtime_pm: bool = False
    contiguous: bool = False


def wants_of(file: ModuleFile) -> Wants:
    """Read off what ``file`` asks a device tree for."""
    wants = Wants()
    _read_tables(file, wants)
    _read_aliases(file, wants)
    paths: set[str | None] = set()
    for part in file.relocation_sections:
        section = file.sections[part.target]
        if section.is_code and not section.name.startswith(".hyp."):
            paths |= _Code(file, part.target).read(wants)
    if "/aliases" not in paths:
        wants.formats.clear()
    imports = {symbol.name for symbol in file.symbols if symbol.shndx == 0}
    wants.runtime_pm = not imports.isdisjoint(_RUNTIME_PM)
    wants.contiguous = not imports.isdisjoint(_POOL_PAGES)
    if not imports.isdisjoint(_TAKE_POOL):
        wants.properties.setdefault("memory-region", Property("memory-region", "phandle"))
    return wants


def _read_aliases(file: ModuleFile, wants: Wants) -> None:
    known = {text for table in wants.tables for text in table}
    for alias in file.modinfo.get("alias", []):
        match = _ALIAS.match(alias)
        if match is None:
            continue
        text = match["compatible"].removesuffix("C*").rstrip("*")
        if text and text not in known:
            known.add(text)
            wants.tables.append([text])


def _read_tables(file: ModuleFile, wants: Wants) -> None:
    """Tables: constant objects whose rows hold a compatible string and nothing odd, with an empty row at the end.

    They are found by their symbols; in a stripped module by the pointers to them.
    """
    known = {text for table in wants.tables for text in table}
    seen: set[tuple[int, int]] = set()
    for section, offset in [*_objects(file), *_pointers(file)]:
        if (section, offset) not in seen:
            seen.add((section, offset))
            rows = _table(file.sections[section].data, offset)
            if rows and known.isdisjoint(rows):
                known.update(rows)
                wants.tables.append(rows)


def _objects(file: ModuleFile) -> Iterator[tuple[int, int]]:
    for symbol in file.symbols:
        if symbol.in_section and symbol.type == 1 and symbol.size >= 2 * MATCH_SIZE and symbol.size % MATCH_SIZE == 0:
            yield from _constant(file, symbol.shndx, symbol.value)


def _pointers(file: ModuleFile) -> Iterator[tuple[int, int]]:
    for part in file.relocation_sections:
        for entry in part.entries:
            if entry.type in (_R_ABS64, _R_ADD_LO12):
                symbol = file.symbols[entry.symbol]
                if symbol.in_section:
                    yield from _constant(file, symbol.shndx, symbol.value + entry.addend)


def _constant(file: ModuleFile, section: int, offset: int) -> Iterator[tuple[int, int]]:
    """The place, where data of EL1 may lie there."""
    home = file.sections[section]
    if not (home.is_code or home.is_nobits or home.name.startswith(".hyp.")) and 0 <= offset < len(home.data):
        yield section, offset


def _table(data: bytes, start: int) -> list[str]:
    """The compatible strings of the table at ``start``; none where there is something else."""
    found: list[str] = []
    for at in range(start, min(len(data) - MATCH_SIZE + 1, start + _ROWS_LIMIT * MATCH_SIZE), MATCH_SIZE):
        row = data[at : at + MATCH_SIZE]
        if not any(row[:MATCH_DATA]):
            return found
        text, _, rest = row[MATCH_COMPATIBLE:MATCH_DATA].partition(b"\0")
        if (
            any(rest)
            or not _COMPATIBLE.match(text.decode("latin-1"))
            or _dirty(row[:MATCH_TYPE])
            or _dirty(row[MATCH_TYPE:MATCH_COMPATIBLE])
        ):
            return []
        found.append(text.decode("latin-1"))
    return []


def _dirty(field_bytes: bytes) -> bool:
    return any(field_bytes.partition(b"\0")[2])


class _Code:
    """One code section: which constant strings reach which calls."""

    def __init__(self, file: ModuleFile, section: int) -> None:
        self._file = file
        self._data = file.sections[section].data
        self._adds: dict[int, tuple[int, int]] = {}
        self._calls: list[tuple[int, str]] = []
        self._section = section
        self._comparers: set[int] = set()
        for entry in file.object.relocations_of(section):
            symbol = file.symbols[entry.symbol]
            if entry.type == _R_ADD_LO12 and symbol.in_section:
                self._adds[entry.offset] = (symbol.shndx, symbol.value + entry.addend)
            elif entry.type in (_R_CALL26, _R_JUMP26) and symbol.shndx == 0:
                self._calls.append((entry.offset, symbol.name))

    def read(self, wants: Wants) -> set[str | None]:
        """Add what this section asks for; returns the paths that it looks up."""
        paths: set[str | None] = set()
        for offset, name in sorted(self._calls):
            if name in ("of_find_compatible_node", "of_get_compatible_child"):
                text = self._string(offset, 2 if name == "of_find_compatible_node" else 1)
                if text and _COMPATIBLE.match(text) and text not in wants.nodes:
                    wants.nodes.append(text)
                    if self._goes_to(offset, "of_reserved_mem_lookup"):
                        wants.reserved.append(text)
            elif name == "of_find_node_by_name":
                text = self._string(offset, 1)
                if text and _NAME.match(text) and text not in wants.names:
                    wants.names.append(text)
            elif name == "of_find_node_opts_by_path":
                paths.add(self._string(offset, 0))
            elif name in ("sprintf", "snprintf", "scnprintf"):
                text = self._string(offset, 1 if name == "sprintf" else 2)
                if text and re.fullmatch(r"[a-z0-9_-]+%[du]", text) and text not in wants.formats:
                    wants.formats.append(text)
            elif name in _WINDOWS:
                wants.windows = max(wants.windows, self._number(offset, _WINDOWS[name]) + 1)
            elif name in _INTERRUPTS:
                wants.interrupts = max(wants.interrupts, self._number(offset, _INTERRUPTS[name]) + 1)
            elif name in _READERS:
                self._reader(offset, name, wants)
        if self._comparers:
            self._compared(wants)
        return paths

    def _compared(self, wants: Wants) -> None:
        """Constant strings that go to the module's own functions which read ``compatible``."""
        for offset in range(0, len(self._data) & ~3, 4):
            word = self._word(offset)
            if word >> 26 != 0x25 or offset + ((word & 0x3FF_FFFF ^ 1 << 25) - (1 << 25) << 2) not in self._comparers:
                continue
            for register in range(4):
                text = self._string(offset, register)
                if text and _COMPATIBLE.match(text) and text not in wants.kinds:
                    wants.kinds.append(text)

    def _function_of(self, offset: int) -> int:
        """Where the function that an instruction lies in begins."""
        symbols = (one for one in self._file.symbols if one.shndx == self._section and one.type == _STT_FUNC)
        known = max((one for one in symbols if one.value <= offset), key=lambda one: one.value, default=None)
        if known is not None and offset < known.value + known.size:
            return known.value
        # A stripped module: most functions begin with signing their return address.
        return next((at for at in range(offset & ~3, -4, -4) if self._word(at) == _PACIASP), 0)

    def _reader(self, offset: int, function: str, wants: Wants) -> None:
        register, kind = _READERS[function]
        name = self._string(offset, register)
        if not name or not _NAME.match(name):
            return
        if name == "compatible":
            self._comparers.add(self._function_of(offset))
        found = Property(name, kind)
        if kind in _COUNTED:
            found = found._replace(length=max(self._constant(offset, 3) or 1, 1) if function.endswith("_array") else 1)
        if function == "of_property_count_elems_of_size":
            found = found._replace(kind="u64" if self._constant(offset, 2) == 8 else "u32")
        elif function == "__of_parse_phandle_with_args":
            found = found._replace(cells=self._string(offset, 2) or self._constant(offset, 3) or 0)
        elif function == "of_count_phandle_with_args":
            found = found._replace(cells=self._string(offset, 2) or 0)
        known = wants.properties.get(name)
        if known is None or known.kind == "any" or (known.kind == kind and found.length > known.length):
            wants.properties[name] = found

    def _goes_to(self, call: int, function: str) -> bool:
        """Whether what a call returns is the first argument of ``function``, called next and soon."""
        calls = dict(self._calls)
        offset = call + 4
        for _ in range(_NEXT_CALL // 4):
            word = self._word(offset)
            if word >> 26 == 0x25:
                return calls.get(offset) == function
            if word >> 24 & 0x7F == 0x35 and word & 0x1F == 0:  # CBNZ X0: where it goes with a node
                offset += ((word >> 5 & 0x7_FFFF ^ 1 << 18) - (1 << 18)) * 4
                continue
            if (word & 0x1F == 0 and _writes(word)) or word >> 26 == 0x05:
                return False
            offset += 4
        return False

    # Backwards from a call

    def _word(self, offset: int) -> int:
        return int.from_bytes(self._data[offset : offset + 4], "little")

    def _string(self, call: int, register: int) -> str | None:
        offset = call - 4
        for _ in range(_SCAN_LIMIT):
            if offset < 0:
                return None
            word = self._word(offset)
            if word >> 26 in (0x25, 0x05) and register <= _CALLER_SAVED and word >> 31:
                return None
            if word & 0x1F == register:
                if offset in self._adds:
                    return self._text(*self._adds[offset])
                if word & 0xFFE0_FFE0 == 0xAA00_03E0:
                    register = word >> 16 & 0x1F
                elif _writes(word):
                    return None
            if word == 0xD65F_03C0:
                return None
            offset -= 4
        return None

    def _constant(self, call: int, register: int) -> int | None:
        """A small constant that ``mov`` puts into a register shortly before the call."""
        for offset in range(call - 4, max(call - 64, -4), -4):
            word = self._word(offset)
            if word & 0x1F == register and word & 0x7FE0_0000 == 0x5280_0000:
                return word >> 5 & 0xFFFF
            if word >> 26 == 0x25:
                return None
        return None

    def _number(self, call: int, register: int) -> int:
        return min(self._constant(call, register) or 0, _COUNT_LIMIT - 1)

    def _text(self, section: int, offset: int) -> str | None:
        data = self._file.sections[section].data
        end = data.find(b"\0", offset)
        return data[offset:end].decode("latin-1") if 0 <= offset <= end else None


def _writes(word: int) -> bool:
    """Whether an instruction writes the register in its low five bits: data processing and loads, not stores or branches."""
    group = word >> 25 & 0xF
    if group in (0b1000, 0b1001, 0b0101, 0b1101):
        return True
    return group in (0b0100, 0b0110, 0b1100, 0b1110) and bool(word >> 22 & 1)
