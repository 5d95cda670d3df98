"""Answers of a vendor's firmware, for ``--smc``."""

from pkvm_emu.hyp.el3_calls import SmcCall, smc

SECURE_REGISTERS = {0: 0xCAFE, 1: 0xF00D}


@smc(0xC2000834)
def read_secure_register(call: SmcCall) -> int | tuple[int, int]:
    """x1 is the number of a register; x1 of the answer its value."""
    if call.x[1] not in SECURE_REGISTERS:
        return -2
    call.log(f"{call.name} of register {call.x[1]} by {call.caller}")
    return 0, SECURE_REGISTERS[call.x[1]]
