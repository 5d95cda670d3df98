"""The hypervisor's FF-A proxy: the host's calls are answered, filtered, or go on to EL3 once page ownership agrees.

The host may give pages to the secure world only while they are its own, and has them back only when the secure world says so. The
buffers that the firmware reads are the hypervisor's; the host's are shared with it and copied. Source:
arch/arm64/kvm/hyp/nvhe/ffa.c; what generations do differently is in :mod:`pkvm_emu.abi.ffa`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pkvm_emu.abi.ffa import FFA_RULES, UNSUPPORTED, FfaRules
from pkvm_emu.arch import ffa
from pkvm_emu.arch.ffa import HOST_ID, PAGE_SIZE, Ffa, FfaReturn, Response, failure, success
from pkvm_emu.arch.smccc import MASK64, SMCCC_VERSION
from pkvm_emu.hyp.cpu import HostContext
from pkvm_emu.hyp.errors import HypBug, HypFault
from pkvm_emu.hyp.ffa_memory import FfaMemory
from pkvm_emu.hyp.trace_events import TraceEvents
from pkvm_emu.machine.state import State

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

#: What becomes of a call: answered, or on to the modules' handlers and EL3.
ANSWERED, PASSED_ON = 0, 1
_SMCCC_1_1 = 0x1_0001
_MASK32 = 0xFFFF_FFFF
_COUNT_ONLY = 1
_INFO_SIZE_1_0 = 8
_REGISTERS = 18
_ORIGIN = "FF-A"


def as_int(value: int) -> int:
    """The low half of a register as a C ``int``."""
    value &= _MASK32
    return value - (1 << 32) if value >> 31 else value


class FfaProxy(State):
    """The proxy of one hypervisor.

    Args:
        hyp: the hypervisor.

    Attributes:
        asked: the firmware was asked for its version (which the hypervisor does at boot, and the proxy here at the first call).
        version: FF-A version in use, or 0 where the firmware has none.
        negotiated: the host asked for a version, and it was settled.
        tx, rx: PA of the hypervisor's buffers, 0 without firmware.
        host_tx, host_rx: PA of the host's, 0 while there are none.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        super().__init__(hyp.machine.journal, "hyp.ffa")
        self._hyp = hyp
        self._rules = FFA_RULES[hyp.generation.name]
        self._memory = FfaMemory(self)
        self.asked = self.negotiated = False
        self.version = self.tx = self.rx = self.host_tx = self.host_rx = 0
        memory, rules = self._memory, self._rules
        self._calls: dict[int, Callable[[HostContext], Response | None]] = {
            Ffa.FEATURES.smc32: self._features,
            Ffa.RXTX_MAP.smc64: self._map,
            Ffa.RXTX_UNMAP.smc32: self._unmap,
            Ffa.MEM_SHARE.smc32: lambda regs: memory.transfer(Ffa.MEM_SHARE.smc64, regs),
            Ffa.MEM_SHARE.smc64: lambda regs: memory.transfer(Ffa.MEM_SHARE.smc64, regs),
            Ffa.MEM_LEND.smc32: lambda regs: memory.transfer(Ffa.MEM_LEND.smc64, regs),
            Ffa.MEM_LEND.smc64: lambda regs: memory.transfer(Ffa.MEM_LEND.smc64, regs),
            Ffa.MEM_RECLAIM.smc32: memory.reclaim,
            Ffa.MEM_FRAG_TX.smc32: memory.fragment,
        }
        if rules.negotiates:
            self._calls[Ffa.VERSION.smc32] = self._version
        if rules.relays_partition_info:
            self._calls[Ffa.PARTITION_INFO_GET.smc32] = self._partition_info
        if rules.answers_id:
            self._calls[Ffa.ID_GET.smc32] = lambda regs: success(HOST_ID)
            self._calls[Ffa.RX_RELEASE.smc32] = lambda regs: self.release_rx()
        if rules.relays_direct:
            self._calls[Ffa.MSG_SEND_DIRECT_REQ.smc32] = self._direct
            self._calls[Ffa.MSG_SEND_DIRECT_REQ.smc64] = self._direct

    @property
    def hyp(self) -> Hypervisor:
        """Whose proxy it is."""
        return self._hyp

    @property
    def rules(self) -> FfaRules:
        """How the generation does it."""
        return self._rules

    def owns(self, function: int) -> bool:
        """Whether an id is in what the generation takes for FF-A."""
        return ffa.is_ffa(function, self._rules.last)

    def relay(self, function: int, regs: HostContext) -> int:
        """A call of the host in the FF-A range: ``ANSWERED`` in its registers, or ``PASSED_ON``.

        Args:
            function: the id, hint bits removed.
            regs: the host's registers.

        Raises:
            HypBug: the proxy's own checks of the firmware's answers fail (a WARN).
        """
        self._initialise()
        rules = self._rules
        if rules.negotiates and not self.negotiated and function != Ffa.VERSION.smc32:
            return self._set(regs, failure(FfaReturn.INVALID_PARAMETERS)) if rules.unnegotiated_answers else ANSWERED
        call = self._calls.get(function)
        if call is not None:
            response = call(regs)
            return PASSED_ON if response is None else self._set(regs, response)
        if self._supported(function):
            return PASSED_ON
        return self._set(regs, failure(FfaReturn.NOT_SUPPORTED))

    def _supported(self, function: int) -> bool:
        if self._rules.unsupported_direct and function == Ffa.MSG_SEND_DIRECT_REQ.smc32:
            return False
        return function not in UNSUPPORTED

    @staticmethod
    def _set(regs: HostContext, response: Response) -> int:
        for index, value in enumerate(response):
            regs[index] = value & MASK64
        return ANSWERED

    # The firmware

    def ask(self, function: int, *args: int) -> Response:
        """An SMC of the hypervisor's own: x0 to x3 after it, -1 in x0 where nobody answers."""
        given = (function, *args)
        registers = given + (0,) * (_REGISTERS - len(given))
        answer = self._ask(registers)
        full = (MASK64, *registers[1:4]) if answer is None else (*answer, *registers[len(answer) : 4])
        x0, x1, x2, x3 = (value & MASK64 for value in full[:4])
        return x0, x1, x2, x3

    def _ask(self, registers: tuple[int, ...]) -> tuple[int, ...] | None:
        events = self._hyp.part(TraceEvents) if self._rules.traced else None
        if events is not None:
            events.emit("hyp_exit")
        answer = self._hyp.el3.ask(registers)
        if events is not None:
            events.emit("hyp_enter")
        return answer

    def _initialise(self) -> None:
        """What the hypervisor finds out at boot (``hyp_ffa_init()``)."""
        if self.asked:
            return
        self.asked = True
        smccc = as_int(self.ask(SMCCC_VERSION)[0])
        if smccc < _SMCCC_1_1:
            return
        version = as_int(self.ask(Ffa.VERSION.smc32, self._rules.newest)[0])
        if version == FfaReturn.NOT_SUPPORTED or ffa.major(version) != 1:
            return
        if not self._rules.negotiates and (version != self._rules.newest or not self._usable()):
            return
        self.version = min(version, self._rules.newest)
        self.tx, self.rx = self._hyp.own_page(), self._hyp.own_page()

    def _usable(self) -> bool:
        """The firmware takes the host for endpoint 0, and buffers of one page."""
        x0, _, x2, _ = self.ask(Ffa.ID_GET.smc32)
        if x0 != Ffa.SUCCESS.smc32 or x2 != HOST_ID:
            return False
        x0, _, x2, _ = self.ask(Ffa.FEATURES.smc32, Ffa.RXTX_MAP.smc64)
        return x0 == Ffa.SUCCESS.smc32 and x2 == 0

    def release_rx(self) -> Response:
        """FFA_RX_RELEASE of the hypervisor's buffer."""
        return self.ask(Ffa.RX_RELEASE.smc32)

    # Calls of the host

    def _version(self, regs: HostContext) -> Response:
        wanted = regs[1] & _MASK32
        not_supported = FfaReturn.NOT_SUPPORTED & MASK64
        if ffa.major(wanted) != 1:
            return not_supported, 0, 0, 0
        if self.negotiated:
            return self.version, 0, 0, 0
        if ffa.minor(wanted) < ffa.minor(self.version):
            answer = self.ask(Ffa.VERSION.smc32, wanted)
            if as_int(answer[0]) == FfaReturn.NOT_SUPPORTED:
                return answer
            self.version = wanted
        if not self._usable():
            return not_supported, 0, 0, 0
        self.negotiated = True
        return self.version, 0, 0, 0

    def _features(self, regs: HostContext) -> Response | None:
        wanted = regs[1] & _MASK32
        if not self._supported(wanted):
            return failure(FfaReturn.NOT_SUPPORTED)
        shares = (Ffa.MEM_SHARE, Ffa.MEM_LEND)
        if wanted in [form for call in shares for form in (call.smc32, call.smc64)]:
            # No buffers allocated for the transaction alone.
            return success(0)
        return None

    def _map(self, regs: HostContext) -> Response:
        tx, rx, pages = regs[1], regs[2], regs[3] & _MASK32
        if pages != 1 or (tx | rx) % PAGE_SIZE:
            return failure(FfaReturn.INVALID_PARAMETERS)
        if self.host_tx:
            return failure(FfaReturn.DENIED)
        x0, _, x2, _ = self.ask(Ffa.RXTX_MAP.smc64, self._pa(self.tx), self._pa(self.rx), pages)
        if x0 != Ffa.SUCCESS.smc32 and as_int(x2):
            return failure(as_int(x2))
        if not self._share_buffers(tx, rx):
            self.ask(Ffa.RXTX_UNMAP.smc32, HOST_ID)
            return failure(FfaReturn.INVALID_PARAMETERS)
        self.host_tx, self.host_rx = tx, rx
        return success()

    def _pa(self, buffer: int) -> int:
        # Without firmware the buffers are NULL pointers, which have a physical address like any other.
        return buffer or self._hyp.stage1.pa_of(0) & MASK64

    def _share_buffers(self, tx: int, rx: int) -> bool:
        """Share and pin both pages, or neither."""
        owner, done = self._hyp.ownership, []
        for page in (tx, rx):
            if owner.host_share_hyp(page >> 12, origin=_ORIGIN):
                break
            done.append(page)
        else:
            pinned = []
            for page in (tx, rx):
                va = self._hyp.stage1.va_of(page)
                if owner.pin_shared_mem(va, va + 1, origin=_ORIGIN):
                    break
                pinned.append(va)
            else:
                return True
            for va in reversed(pinned):
                owner.unpin_shared_mem(va, va + 1, origin=_ORIGIN)
        for page in reversed(done):
            owner.host_unshare_hyp(page >> 12, origin=_ORIGIN)
        return False

    def _unmap(self, regs: HostContext) -> Response:
        if regs[1] & _MASK32 != HOST_ID or not self.host_tx:
            return failure(FfaReturn.INVALID_PARAMETERS)
        owner = self._hyp.ownership
        for page in (self.host_tx, self.host_rx):
            va = self._hyp.stage1.va_of(page)
            owner.unpin_shared_mem(va, va + 1, origin=_ORIGIN)
            if owner.host_unshare_hyp(page >> 12, origin=_ORIGIN):
                raise HypBug(f"the FF-A proxy cannot give back the host's buffer {page:#x}: {owner.last_refusal}")
        self.host_tx = self.host_rx = 0
        self.ask(Ffa.RXTX_UNMAP.smc32, HOST_ID)
        return success()

    def _partition_info(self, regs: HostContext) -> Response:
        if not self.host_rx:
            return failure(FfaReturn.BUSY)
        flags = regs[5] & _MASK32
        answer = self.ask(Ffa.PARTITION_INFO_GET.smc32, *(regs[n] & _MASK32 for n in range(1, 6)))
        count = answer[2] & _MASK32
        if answer[0] != Ffa.SUCCESS.smc32 or not count:
            return answer
        newer = self.version > ffa.VERSION_1_0
        if newer and flags & _COUNT_ONLY:
            return answer
        size = (answer[3] & _MASK32 if newer else _INFO_SIZE_1_0) * count & _MASK32
        if size > PAGE_SIZE:
            return failure(FfaReturn.ABORTED)
        ram = self._hyp.machine.ram
        ram.write(self.host_rx, ram.read(self.rx, size))
        return answer

    def _direct(self, regs: HostContext) -> Response | None:
        endpoints = regs[1] & _MASK32
        if endpoints >> 16 != HOST_ID:
            # The error is made and not handed over: the registers stay as they are.
            return regs[0], regs[1], regs[2], regs[3]
        given = tuple(regs[n] & _MASK32 for n in range(8)) + (0,) * (_REGISTERS - 8)
        answer = self._ask(given)
        values = (MASK64,) if answer is None else answer
        # SMCCC 1.1 firmware keeps what it does not return; the host has its own registers there.
        for index, value in enumerate(values):
            regs[index] = value & MASK64
        return regs[0], regs[1], regs[2], regs[3]

    def buffer(self, pa: int, what: str) -> int:
        """PA of one of the hypervisor's buffers.

        Raises:
            HypFault: there is none: the firmware has no FF-A, and the hypervisor uses a NULL pointer.
        """
        if not pa:
            raise HypFault(f"the FF-A proxy has no {what} buffer, since EL3 has no FF-A", 0, is_write=True)
        return pa
