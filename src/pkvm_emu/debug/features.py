"""The target description that a debugger reads first (``target.xml``), and the memory map.

Registers with declared fields (HCR_EL2, SCTLR, TCR, ESR, SPSR, ...) get a flags type made of those fields, so
that a debugger prints
them by name. Source: "Debugging with GDB", "Target Description Format".
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from xml.sax.saxutils import quoteattr

from pkvm_emu.arch.bitfield import Register as BitRegister
from pkvm_emu.arch.hcr import Hcr
from pkvm_emu.arch.sctlr import SctlrEl1, SctlrEl2
from pkvm_emu.arch.spsr import Spsr
from pkvm_emu.arch.tcr import TcrEl1, VtcrEl2
from pkvm_emu.debug.registers import CORE, FPU, REGISTERS, Register, group_of

_LAYOUTS: dict[str, type[BitRegister]] = {
    "HCR_EL2": Hcr,
    "SCTLR_EL1": SctlrEl1,
    "SCTLR_EL2": SctlrEl2,
    "TCR_EL1": TcrEl1,
    "VTCR_EL2": VtcrEl2,
    "SPSR_EL1": Spsr,
    "SPSR_EL2": Spsr,
}
_CPSR = (("SP", 0, 0), ("EL", 2, 3), ("F", 6, 6), ("I", 7, 7), ("A", 8, 8), ("D", 9, 9), ("BTYPE", 10, 11), ("SSBS", 12, 12),
         ("IL", 20, 20), ("SS", 21, 21), ("PAN", 22, 22), ("UAO", 23, 23), ("V", 28, 28), ("C", 29, 29), ("Z", 30, 30),
         ("N", 31, 31))  # fmt: skip
_VECTOR_TYPES = """\
<vector id="v2d" type="ieee_double" count="2"/><vector id="v2u" type="uint64" count="2"/>\
<vector id="v2i" type="int64" count="2"/><vector id="v4f" type="ieee_single" count="4"/>\
<vector id="v4u" type="uint32" count="4"/><vector id="v4i" type="int32" count="4"/>\
<vector id="v8u" type="uint16" count="8"/><vector id="v8i" type="int16" count="8"/>\
<vector id="v16u" type="uint8" count="16"/><vector id="v16i" type="int8" count="16"/>\
<vector id="v1u" type="uint128" count="1"/><vector id="v1i" type="int128" count="1"/>\
<union id="vnd"><field name="f" type="v2d"/><field name="u" type="v2u"/><field name="s" type="v2i"/></union>\
<union id="vns"><field name="f" type="v4f"/><field name="u" type="v4u"/><field name="s" type="v4i"/></union>\
<union id="vnh"><field name="u" type="v8u"/><field name="s" type="v8i"/></union>\
<union id="vnb"><field name="u" type="v16u"/><field name="s" type="v16i"/></union>\
<union id="vnq"><field name="u" type="v1u"/><field name="s" type="v1i"/></union>\
<union id="aarch64v"><field name="d" type="vnd"/><field name="s" type="vns"/><field name="h" type="vnh"/>\
<field name="b" type="vnb"/><field name="q" type="vnq"/></union>"""
_TYPES = {"sp": "data_ptr", "pc": "code_ptr", "cpsr": "cpsr_flags"}
_HALF = 1 << 63


@cache
def target_xml() -> bytes:
    """The description, the same for every system."""
    parts = [
        '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target version="1.0">'
        "<architecture>aarch64</architecture><osabi>none</osabi>"
    ]
    features = list(dict.fromkeys(register.feature for register in REGISTERS))
    for feature in features:
        members = [register for register in REGISTERS if register.feature == feature]
        parts.append(f"<feature name={quoteattr(feature)}>")
        if feature == CORE:
            parts.append(_flags("cpsr_flags", 4, _CPSR))
        elif feature == FPU:
            parts.append(_VECTOR_TYPES)
        for register in members:
            layout = _LAYOUTS.get(register.name)
            if layout is not None:
                # A register may have two names for a bit, one of them for both of its siblings: the first in the class wins.
                fields = {field.lsb: (field.label, field.lsb, field.msb) for field in layout.FIELDS.values()}
                parts.append(_flags(f"{register.name}_flags", 8, [fields[low] for low in sorted(fields)]))
        parts += [_register(register) for register in members]
        parts.append("</feature>")
    parts.append("</target>")
    return "\n".join(parts).encode()


def _flags(name: str, size: int, fields: Iterable[tuple[str, int, int]]) -> str:
    rows = "".join(f'<field name={quoteattr(label)} start="{low}" end="{high}"/>' for label, low, high in fields)
    return f'<flags id="{name}" size="{size}">{rows}</flags>'


def _register(register: Register) -> str:
    if register.bits == 128:
        kind = "aarch64v"
    elif register.name in _LAYOUTS:
        kind = f"{register.name}_flags"
    else:
        kind = _TYPES.get(register.name, "uint64" if register.bits == 64 and register.number > 33 else "int")
    group = f' group="{group_of(register)}"' if register.number > 33 else ""
    number = f' regnum="{register.number}"' if register.number == 0 else ""
    return f'<reg name="{register.name}" bitsize="{register.bits}" type="{kind}"{group}{number}/>'


def memory_map_xml() -> bytes:
    """Every address may be RAM: what is there depends on the level and changes as the guest runs."""
    halves = "".join(f'<memory type="ram" start="{start:#x}" length="{_HALF:#x}"/>' for start in (0, _HALF))
    return (
        '<?xml version="1.0"?><!DOCTYPE memory-map PUBLIC "+//IDN gnu.org//DTD GDB Memory Map V1.0//EN" '
        f'"http://sourceware.org/gdb/gdb-memory-map.dtd"><memory-map>{halves}</memory-map>'
    ).encode()
