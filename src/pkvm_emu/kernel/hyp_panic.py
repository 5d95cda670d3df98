"""What the host kernel prints when the hypervisor panics, before it panics itself.

Source of the texts: ``nvhe_hyp_panic_handler`` in ``arch/arm64/kvm/handle_exit.c``. A GKI kernel names neither module
symbols nor source lines here; what the model knows stands on a line of its own behind the kernel's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pkvm_emu.hyp.panic import PanicState
    from pkvm_emu.kernel.kernel import Kernel

_U64 = (1 << 64) - 1


class HypPanicHandler:
    """Writes the panic of a hypervisor into the kernel log.

    Args:
        kernel: whose log.
        linear_offset: hyp VA minus PA of the hypervisor's linear map.
    """

    def __init__(self, kernel: Kernel, linear_offset: int) -> None:
        self._kernel = kernel
        self._hyp_offset = (kernel.memory.kimage_voffset - linear_offset) & _U64

    def report(self, state: PanicState, explanation: str) -> None:
        """Log a panic.

        Args:
            state: the registers that EL2 hands over.
            explanation: what happened in the module's terms.
        """
        kernel = self._kernel
        if state.from_host:
            kernel.kvm_log("Invalid host exception to nVHE hyp!")
        elif state.is_bug:
            self._place("BUG", state.elr)
        elif state.is_cfi_failure:
            self._place("CFI failure", state.elr)
        else:
            self._place("panic", state.elr)
        kernel.kvm_log("Cannot dump pKVM nVHE stacktrace: !CONFIG_PROTECTED_NVHE_STACKTRACE")
        kernel.kvm_log(f"Hyp Offset: {self._hyp_offset:#x}")
        kernel.log.write(
            "Kernel panic - not syncing: HYP panic:\n"
            f"PS:{state.spsr:08x} PC:{state.elr:016x} ESR:{state.esr:016x}\n"
            f"FAR:{state.far:016x} HPFAR:{state.hpfar:016x} PAR:{state.par:016x}\n"
            f"VCPU:{0:016x}",
            level=0,
        )
        kernel.log.write(f"pkvm_emu: {explanation}", level=0)
        if state.frames:
            kernel.log.write("pkvm_emu: EL2 call trace:", level=0)
            for address in state.frames:
                kernel.log.write(f"pkvm_emu:  {kernel.machine.core.describe(address, 2)}", level=0)

    def _place(self, what: str, elr: int) -> None:
        address = (elr + self._hyp_offset) & _U64
        name = self._kernel.symbolize(address) or f"{address:#x}"
        self._kernel.kvm_log(f"nVHE hyp {what} at: [<{address:016x}>] {name}!")
