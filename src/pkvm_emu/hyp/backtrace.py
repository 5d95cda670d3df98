"""The call trace of EL2, by the frame records that its code keeps: x29 points at {previous x29, return address}.

Return addresses are signed where pointer authentication is on; the signature lies above the 48 bits of a hyp VA and is dropped.
The walk ends where a frame record is not on one of the CPU's EL2 stacks: the firmware's host entry keeps the host context in
x29 there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.hyp import layout

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

_MAX_FRAMES = 64
_ADDRESS_MASK = (1 << layout.VA_BITS) - 1
_FRAME_RECORD = 16


def walk(hyp: Hypervisor, pc: int, frame: int, link: int) -> tuple[int, ...]:
    """Where EL2 was, innermost first: the interrupted instruction, then the calls that led to it.

    Args:
        hyp: whose stacks.
        pc: hyp VA of the instruction.
        frame: x29.
        link: x30; counts as a call of its own where no frame record holds it yet (a leaf function).

    Returns:
        Hyp VAs; for callers that of the call instruction.
    """
    cpu = hyp.cpu
    stacks = (
        (cpu.stack_base, cpu.stack_top),
        (cpu.overflow_top - layout.OVERFLOW_STACK_SIZE, cpu.overflow_top),
    )
    callers: list[int] = []
    while len(callers) < _MAX_FRAMES and any(low <= frame <= high - _FRAME_RECORD for low, high in stacks):
        record = hyp.read(frame, _FRAME_RECORD)
        if record is None:
            break
        above, address = (int.from_bytes(record[at : at + 8], "little") for at in (0, 8))
        callers.append((address & _ADDRESS_MASK) - 4)
        if above <= frame:
            break
        frame = above
    leaf = (link & _ADDRESS_MASK) - 4
    # A link register that points into the same function is what the last call from there left behind.
    if link and leaf not in callers and hyp.to_pa(leaf) is not None and _function(hyp, leaf) != _function(hyp, pc):
        callers.insert(0, leaf)
    return (pc, *callers)


def _function(hyp: Hypervisor, va: int) -> str:
    return hyp.machine.core.describe(va, 2).partition("+")[0]
