"""What the code touches besides memory: firmware and hypervisor calls, system registers, maintenance, device tree, MMIO."""

from __future__ import annotations

from dataclasses import dataclass

from pkvm_emu.abi.generation import Generation
from pkvm_emu.arch.insn import sysreg_access
from pkvm_emu.arch.smccc import call_name, kvm_host_number
from pkvm_emu.arch.sysreg import SysReg
from pkvm_emu.inspect.disassembly import instruction_text
from pkvm_emu.inspect.flow import Flow
from pkvm_emu.inspect.functions import CodeMap
from pkvm_emu.inspect.program import Place, Program
from pkvm_emu.inspect.state import Event
from pkvm_emu.inspect.values import Value, number, numbers

_CONDUITS = {
    "__arm_smccc_smc": "smc",
    "arm_smccc_smc": "smc",
    "__arm_smccc_hvc": "hvc",
    "arm_smccc_1_2_smc": "smc",
    "arm_smccc_1_2_hvc": "hvc",
}
_BY_POINTER = frozenset({"arm_smccc_1_2_smc", "arm_smccc_1_2_hvc"})
#: Function → (which argument is the string, what it names). Source: include/linux/of.h and its companions.
_TREE_ARGUMENTS = {
    "of_find_compatible_node": (2, "compatible"),
    "of_device_is_compatible": (1, "compatible"),
    "of_machine_is_compatible": (0, "compatible"),
    "of_get_compatible_child": (1, "compatible"),
    "of_find_node_opts_by_path": (0, "path"),
    "of_find_node_by_name": (1, "node"),
    "of_get_child_by_name": (1, "node"),
    "of_find_node_by_type": (1, "type"),
    "platform_get_resource_byname": (2, "resource"),
    "platform_get_irq_byname": (1, "interrupt"),
    "platform_get_irq_byname_optional": (1, "interrupt"),
    "devm_platform_ioremap_resource_byname": (1, "resource"),
    "of_reserved_mem_device_init_by_name": (2, "reserved memory"),
    "devm_clk_get": (1, "clock"),
    "clk_get": (1, "clock"),
}
_TREE_PREFIXES = ("of_", "__of_", "device_property_", "fwnode_", "device_get_named_", "devm_of_")
_MAPPERS = frozenset(
    {"ioremap_prot", "__ioremap", "ioremap", "ioremap_cache", "devm_ioremap", "devm_ioremap_wc", "memremap"}
)
_TABLES_LIMIT = 8 << 20
_MATCH_SIZE, _COMPATIBLE_AT, _COMPATIBLE_SIZE = 200, 64, 128


@dataclass(frozen=True, slots=True)
class FirmwareCall:
    """An SMC or HVC. ``ids`` are the values that x0 may have (empty: not known), ``name`` says what they are."""

    conduit: str
    el: int
    ids: list[int]
    name: str | None
    by: str
    place: Place


@dataclass(frozen=True, slots=True)
class RegisterUse:
    """A system register that EL2 code reads and writes, and where."""

    name: str
    reads: list[Place]
    writes: list[Place]


@dataclass(frozen=True, slots=True)
class Maintenance:
    """TLBI, AT, DC and IC operations, with the count of places."""

    operation: str
    places: list[Place]


@dataclass(frozen=True, slots=True)
class TreeUse:
    """A name that the module asks the device tree for: ``kind`` ``compatible``, ``property``, ``node`` ...; ``by`` the function or
    table."""

    kind: str
    name: str
    by: str


@dataclass(frozen=True, slots=True)
class Mapping:
    """A mapping of device memory at a constant physical address; ``size`` None when not constant."""

    by: str
    address: int
    size: int | None
    place: Place


@dataclass(frozen=True, slots=True)
class HardwareFacts:
    """Everything found."""

    calls: list[FirmwareCall]
    registers: list[RegisterUse]
    maintenance: list[Maintenance]
    tree: list[TreeUse]
    mappings: list[Mapping]


def read_hardware(program: Program, code: CodeMap, flow: Flow) -> HardwareFacts:
    """Collect the facts; ``flow`` has finished."""
    registers, maintenance = _read_system(program, code)
    return HardwareFacts(
        _read_calls(program, code, flow),
        registers,
        maintenance,
        _read_tree(program, flow),
        _read_mappings(program, flow),
    )


def describe_id(value: int, conduit: str, generation: Generation | None) -> str:
    """A function id in words: ``PSCI_CPU_ON``, ``KVM host_share_hyp``, ``sip 0x834``."""
    value &= 0xFFFF_FFFF_FFFF_FFFF
    if conduit == "hvc":
        host = kvm_host_number(value)
        if host is not None:
            return _host_call(host, generation)
    return "no SMCCC id" if value >> 32 else call_name(value)


def _host_call(number_: int, generation: Generation | None) -> str:
    if generation is None:
        return f"KVM host call {number_}"
    if generation.is_dynamic(number_):
        return f"module hypercall {number_}"
    functions = generation.hypercalls.functions
    return f"KVM {functions[number_]}" if number_ < len(functions) else f"KVM host call {number_}"


def _read_calls(program: Program, code: CodeMap, flow: Flow) -> list[FirmwareCall]:
    found: dict[int, FirmwareCall] = {}
    for event in flow.events:
        conduit, value, by = event.kind, event.arguments[0] if event.arguments else None, ""
        if event.kind == "call":
            by = (program.external(event.target) or "") if event.target is not None else ""
            if by not in _CONDUITS:
                continue
            conduit = _CONDUITS[by]
            value = event.pointee if by in _BY_POINTER else value
        elif event.kind not in ("smc", "hvc"):
            continue
        found[event.va] = _call(program, event.va, conduit, value, by or f"{conduit} #{event.target}")
    for section in code.sections:
        for va, word in code.instructions(section):
            if word & 0xFFE0001F in (0xD4000002, 0xD4000003) and va not in found:
                conduit = "smc" if word & 1 else "hvc"
                found[va] = _call(program, va, conduit, None, f"{conduit} #{word >> 5 & 0xFFFF}")
    return [found[va] for va in sorted(found)]


def _call(program: Program, va: int, conduit: str, value: Value, by: str) -> FirmwareCall:
    ids = [found for found in numbers(value) if not program.is_address(found)]
    names = [describe_id(found, conduit, program.generation) for found in ids]
    return FirmwareCall(
        conduit, 2 if program.is_hyp_text(va) else 1, ids, " | ".join(names) or None, by, program.place(va)
    )


def _read_system(program: Program, code: CodeMap) -> tuple[list[RegisterUse], list[Maintenance]]:
    uses: dict[str, tuple[list[Place], list[Place]]] = {}
    operations: dict[str, list[Place]] = {}
    for section in code.sections:
        if not program.is_el2(section):
            continue
        for va, word in code.instructions(section):
            if word >> 22 != 0x354:
                continue
            access = sysreg_access(word)
            if access is not None:
                is_read, register, _ = access
                name = register.name if isinstance(register, SysReg) else "S{}_{}_C{}_C{}_{}".format(*register)
                uses.setdefault(name, ([], []))[0 if is_read else 1].append(program.place(va))
            elif word & 0xFFD80000 == 0xD5080000:
                text = instruction_text(word)
                mnemonic, _, operand = text.partition(" ")
                operations.setdefault(f"{mnemonic} {operand.partition(',')[0]}", []).append(program.place(va))
    return (
        [RegisterUse(name, *uses[name]) for name in sorted(uses)],
        [Maintenance(name, operations[name]) for name in sorted(operations)],
    )


# Device tree


def _read_tree(program: Program, flow: Flow) -> list[TreeUse]:
    found = [TreeUse("compatible", name, ".modinfo alias") for name in _aliases(program)]
    found += [TreeUse("compatible", name, f"table {table}") for table, name in _match_tables(program)]
    for event in flow.events:
        if event.kind == "call" and event.target is not None:
            found += _tree_call(program, event)
    return list(dict.fromkeys(found))


def _aliases(program: Program) -> list[str]:
    """``alias=of:N*T*Carm,pl011C*`` gives ``arm,pl011``."""
    names = []
    for alias in program.file.modinfo.get("alias", []):
        if alias.startswith("of:"):
            compatible = alias.rpartition("*C")[2] if alias.count("C") == 1 else alias.partition("T*C")[2]
            names.append(compatible.removesuffix("C*").removesuffix("*"))
    return list(dict.fromkeys(name for name in names if name))


def _match_tables(program: Program) -> list[tuple[str, str]]:
    """(symbol, compatible) of every ``struct of_device_id`` array among the module's data objects."""
    rows = []
    budget = _TABLES_LIMIT
    for symbol in program.file.symbols:
        if not symbol.in_section or symbol.size < _MATCH_SIZE or symbol.size % _MATCH_SIZE:
            continue
        budget -= symbol.size
        if budget < 0:
            break
        section = program.file.sections[symbol.shndx]
        data = section.data[symbol.value : symbol.value + symbol.size]
        if section.is_code or len(data) != symbol.size:
            continue
        for at in range(0, len(data) - _MATCH_SIZE + 1, _MATCH_SIZE):
            field = data[at + _COMPATIBLE_AT : at + _COMPATIBLE_AT + _COMPATIBLE_SIZE]
            text, _, rest = field.partition(b"\0")
            if text and not any(rest) and text.isascii() and text.decode().isprintable() and b" " not in text:
                rows.append((symbol.name, text.decode()))
    return list(dict.fromkeys(rows))


def _tree_call(program: Program, event: Event) -> list[TreeUse]:
    name = program.external(event.target) if event.target is not None else None
    if name is None:
        return []
    if name in _TREE_ARGUMENTS:
        index, kind = _TREE_ARGUMENTS[name]
    elif name.startswith(_TREE_PREFIXES):
        index, kind = 1, "property"
    else:
        return []
    texts = [program.string(va) for va in numbers(event.arguments[index]) if program.is_address(va)]
    return [TreeUse(kind, text, name) for text in texts if text]


def _read_mappings(program: Program, flow: Flow) -> list[Mapping]:
    found = []
    generation = program.generation
    private = generation.ops["create_private_mapping"].offset if generation else -1
    for event in flow.events:
        by, first = "", 0
        if event.kind == "op" and private in event.ops:
            by = "create_private_mapping"
        elif event.kind == "call" and event.target is not None:
            by = program.external(event.target) or ""
            first = 1 if by.startswith("devm_") else 0
            if by not in _MAPPERS:
                continue
        if by:
            for address in numbers(event.arguments[first]):
                if address and not program.is_address(address):
                    size = number(event.arguments[first + 1])
                    found.append(Mapping(by, address, size, program.place(event.va)))
    return found
