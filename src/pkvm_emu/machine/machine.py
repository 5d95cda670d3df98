"""The machine: one engine, its RAM, its CPUs, the run loop, and the state that snapshots bring back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pkvm_emu.errors import EmulatorError, UsageError
from pkvm_emu.machine.core import Core
from pkvm_emu.machine.engine import Engine
from pkvm_emu.machine.memory import make_ram
from pkvm_emu.machine.power import Power, PowerState
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.machine.snapshot import SnapshotTree
from pkvm_emu.machine.state import Journal

_MIB = 1 << 20
#: As far as the linear map of EL2 goes, below the tag of its addresses (bit 34).
_RAM_MAX = 16 << 30
_REGIME = (
    "HCR_EL2", "VTTBR_EL2", "VTCR_EL2", "SCTLR_EL1", "TTBR0_EL1", "TTBR1_EL1", "TCR_EL1", "SCTLR_EL2", "TTBR0_EL2", "TCR_EL2",
)  # fmt: skip
_EL2H_MASKED = 0x3C9


class Cpu:
    """What belongs to one CPU: its number, and its registers while another CPU is on the engine.

    Attributes:
        index: 0, 1, ...
        mpidr: MPIDR_EL1.
        context: the saved registers; None before the CPU ran first.
        regime: those of them that decide what an address translates to; empty where that is not known.
    """

    __slots__ = ("_engine", "_is_shared", "_regime", "context", "index", "mpidr", "regime")

    def __init__(self, index: int, engine: Engine) -> None:
        self.index = index
        self.mpidr = 0x8000_0000 | index
        self.context: Any = None
        self.regime: tuple[int, ...] = ()
        self._regime = engine.batch(*_REGIME)
        self._is_shared = False
        self._engine = engine

    def save(self) -> None:
        """Save the engine's registers as this CPU's."""
        self._regime.read()
        self.regime = tuple([cell.val for cell in self._regime.cp.values()])
        if self.context is None or self._is_shared:
            self.context = self._engine.save_context()
            self._is_shared = False
        else:
            self._engine.update_context(self.context)

    def share(self) -> Any:
        """The saved registers, in a context that later saves do not overwrite."""
        self._is_shared = True
        return self.context

    def set_context(self, context: Any) -> None:
        """Take over saved registers that somebody else keeps too."""
        self.context = context
        self.regime = ()
        self._is_shared = True


class Machine:
    """One emulated board.

    Args:
        profile: features and sizes.

    Raises:
        UsageError: a RAM size or a number of CPUs that cannot be.
    """

    def __init__(self, profile: MachineProfile | None = None) -> None:
        self.profile = profile = profile or MachineProfile()
        if (
            not 64 * _MIB <= profile.ram_size <= _RAM_MAX
            or profile.ram_size % (2 * _MIB)
            or profile.ram_base % (2 * _MIB)
        ):
            raise UsageError(
                f"RAM of {profile.ram_size:#x} bytes: it must be a multiple of 2 MiB, from 64 MiB to 16 GiB"
            )
        if not 1 <= profile.cpus <= 8:
            raise UsageError(f"{profile.cpus} CPUs: the machine has 1 to 8")
        self.journal = Journal()
        try:
            self.ram = make_ram(profile.ram_base, profile.ram_size)
        except OSError as error:
            raise EmulatorError(
                f"RAM of {profile.ram_size // _MIB} MiB: this computer has none: {error.strerror}"
            ) from error
        self.engine = Engine(self.ram)
        self.core = Core(self.engine)
        self.cpus = [Cpu(index, self.engine) for index in range(profile.cpus)]
        self.current = self.cpus[0]
        self.power = Power(self.journal, profile.cpus)
        self.core.before_run = lambda: self.power.check(self.current.index)
        self.core.after_run = self.run_started_cpus
        self.core.on_parked = self._leave_parked_cpu
        self.snapshots = SnapshotTree(self)
        self._cpu_id_hooks: set[int] = set()
        #: The registers of a CPU that has just been reset.
        self._reset = self.engine.save_context()

    def save_current_cpu(self) -> None:
        """Save the engine's registers into the current CPU."""
        self.current.save()

    def switch_to(self, index: int) -> None:
        """Put CPU ``index`` on the engine; one that never ran is put there as it is after reset.

        Raises:
            UsageError: there is no such CPU, or it is off or suspended.
        """
        if not 0 <= index < len(self.cpus):
            raise UsageError(f"there is no CPU {index}: the machine has CPUs 0 to {len(self.cpus) - 1}")
        cpu = self.cpus[index]
        if cpu is self.current:
            return
        if not self.power.is_on(index):
            raise UsageError(self.power.describe(index))
        before, self.current = self.current, cpu
        before.save()
        self.engine.restore_context(self._reset if cpu.context is None else cpu.context)
        # What the engine cached of translations holds for one set of tables.
        if cpu.regime != before.regime:
            self.engine.flush_tlb()

    def start_cpu(self, index: int) -> int:
        """Put a CPU that is pending or suspended on the engine, as EL3 starts it: at EL2, MMU off; the PC to run from."""
        entry = self.power.started(index)
        self.current.save()
        self.current = self.cpus[index]
        self.engine.restore_context(self._reset)
        self.engine.set_pstate(_EL2H_MASKED)
        self.engine.write("x0", entry.x0)
        self.engine.flush_tlb()
        return entry.pc

    def run_cpu(self, index: int) -> None:
        """Run a CPU that is pending or suspended until it leaves to Python, and go on with the present one.

        Errors as for :meth:`Core.run`; the CPU stays on the engine then.
        """
        before = self.current.index
        self.core.run(self.start_cpu(index))
        if self.power.is_on(before):
            self.switch_to(before)

    def run_started_cpus(self) -> None:
        """Run the CPUs that were switched on and have not begun yet (in turns they begin by themselves)."""
        while self.power.entries and (pending := self.power.in_state(PowerState.PENDING)):
            self.run_cpu(pending[0])

    @contextmanager
    def on_cpu(self, index: int) -> Iterator[None]:
        """Run the block with CPU ``index`` on the engine, and the present one afterwards (unless it went off in it).

        Raises:
            UsageError: as for :meth:`switch_to`.
        """
        before = self.current.index
        self.switch_to(index)
        try:
            yield
        finally:
            if self.power.is_on(before):
                self.switch_to(before)

    def _leave_parked_cpu(self) -> str:
        """The CPU on the engine runs no more: go on with the first that does."""
        parked = self.current.index
        running = self.power.running
        if running:
            self.switch_to(running[0])
        return self.power.describe(parked)

    def hook_cpu_id_reads(self, addresses: Iterable[int]) -> None:
        """Let the MRS of MPIDR_EL1 at these VAs (of EL2) give the number of the CPU.

        The engine has one CPU, and its MPIDR_EL1 cannot be written; what EL1 reads is VMPIDR_EL2, which is each CPU's own. The
        instructions must not have been executed since the last ``engine.flush_code``.
        """
        if len(self.cpus) == 1:
            return
        for va in addresses:
            if va not in self._cpu_id_hooks:
                self._cpu_id_hooks.add(va)
                self.engine.hook_register_read(va, ("MPIDR_EL1",), lambda: self.current.mpidr)

    def patch_code(self, pa: int, data: bytes) -> None:
        """Write instructions at a physical address and forget what was translated of them."""
        self.ram.write(pa, data)
        self.core.code_epoch += 1
        self.engine.flush_code()

    def digest(self) -> str:
        """SHA-256 over all state: RAM that was written, registers, counters and every journalled service.

        Two machines made alike, or one machine before and after a restore, agree exactly if nothing differs.
        """
        import hashlib

        out = hashlib.sha256()
        out.update(self.journal.digest().encode())
        out.update(f"{self.core.ticks} {self.core.exceptions} {self.current.index}".encode())
        registers = self.engine.batch(*[f"x{n}" for n in range(31)], "sp", "pc", "pstate", *_DIGEST_SYSREGS)
        for index in [self.current.index, *self.power.running]:
            with self.on_cpu(index):
                out.update(f"{index} {registers.snapshot()}".encode())
        for index, page in self.ram.nonzero_pages():
            out.update(index.to_bytes(8, "little"))
            out.update(page)
        return out.hexdigest()


_DIGEST_SYSREGS = (
    "SP_EL0", "SP_EL1", "ELR_EL1", "ELR_EL2", "SPSR_EL1", "SPSR_EL2", "ESR_EL1", "ESR_EL2", "FAR_EL1", "FAR_EL2",
    "HPFAR_EL2", "VBAR_EL1", "VBAR_EL2", "TTBR0_EL1", "TTBR1_EL1", "TTBR0_EL2", "TCR_EL1", "TCR_EL2", "VTTBR_EL2",
    "VTCR_EL2", "HCR_EL2", "SCTLR_EL1", "SCTLR_EL2", "MAIR_EL1", "MAIR_EL2", "TPIDR_EL0", "TPIDR_EL1", "TPIDR_EL2",
)  # fmt: skip
