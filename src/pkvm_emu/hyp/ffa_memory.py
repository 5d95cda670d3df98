"""Memory transactions of the FF-A proxy: pages that the host shares with the secure world or lends to it, and has back.

Source: arch/arm64/kvm/hyp/nvhe/ffa.c (``__do_ffa_mem_xfer()``, ``do_ffa_mem_frag_tx()``, ``do_ffa_mem_reclaim()``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.abi.ffa import DESCRIPTOR_BYTES
from pkvm_emu.arch import ffa
from pkvm_emu.arch.ffa import (
    ACCESS_SIZE,
    COMPOSITE_SIZE,
    HOST_ID,
    PAGE_SIZE,
    RANGE_SIZE,
    Ffa,
    FfaReturn,
    Range,
    Region,
    Response,
    failure,
)
from pkvm_emu.hyp.cpu import HostContext
from pkvm_emu.hyp.errors import HypBug

if TYPE_CHECKING:
    from pkvm_emu.hyp.ffa import FfaProxy

_MASK32 = 0xFFFF_FFFF
_ORIGIN = "FF-A"


class FfaMemory:
    """Holds nothing: its state is the proxy's.

    Args:
        proxy: the proxy.
    """

    def __init__(self, proxy: FfaProxy) -> None:
        self._proxy = proxy

    # Ownership

    def _each(self, ranges: list[Range], share: bool) -> int:
        """Share or unshare ranges until one is refused; how many were done."""
        owner = self._proxy.hyp.ownership
        change = owner.host_share_ffa if share else owner.host_unshare_ffa
        for done, part in enumerate(ranges):
            if self._proxy.rules.aligned_ranges and part.address % PAGE_SIZE:
                return done
            if change(part.address >> 12, part.pages, origin=_ORIGIN):
                return done
        return len(ranges)

    def _share(self, ranges: list[Range]) -> bool:
        """Share all ranges, or none."""
        done = self._each(ranges, True)
        if done != len(ranges) and self._each(ranges[:done], False) != done:
            raise HypBug("FF-A: ranges that were shared a moment ago cannot be unshared")
        return done == len(ranges)

    def _unshare(self, ranges: list[Range]) -> None:
        if self._each(ranges, False) != len(ranges):
            raise HypBug(
                f"FF-A: shared pages cannot be given back to the host: {self._proxy.hyp.ownership.last_refusal}"
            )

    # Calls of the host

    def transfer(self, function: int, regs: HostContext) -> Response:
        """FFA_MEM_SHARE and FFA_MEM_LEND: the first part of a descriptor is in the host's TX buffer."""
        proxy = self._proxy
        length, part = regs[1] & _MASK32, regs[2] & _MASK32
        bad = failure(FfaReturn.INVALID_PARAMETERS)
        if regs[3] or regs[4] & _MASK32 or part > length or part > PAGE_SIZE:
            return bad
        version = proxy.version or ffa.VERSION_1_0
        least = ffa.access_offset(version) if proxy.rules.head_by_version else ffa.REGION_SIZE
        if part < least + ACCESS_SIZE or not proxy.host_tx:
            return bad
        if length > DESCRIPTOR_BYTES:
            return failure(FfaReturn.NO_MEMORY)
        ram = proxy.hyp.machine.ram
        data = ram.read(proxy.host_tx, part)
        ram.write(proxy.buffer(proxy.tx, "TX"), data)
        head = Region.parse(data, version)
        if not head.composite or head.endpoints != 1 or head.sender != HOST_ID:
            return bad
        if head.composite + COMPOSITE_SIZE > _MASK32:
            return failure(proxy.rules.overflow)
        if part < head.composite + COMPOSITE_SIZE:
            return bad
        listed = data[head.composite + COMPOSITE_SIZE :]
        if len(listed) % RANGE_SIZE:
            return bad
        ranges = ffa.ranges_of(listed)
        if not self._share(ranges):
            return failure(proxy.rules.denied)
        answer = proxy.ask(function, length, part)
        taken = answer[0] == Ffa.SUCCESS.smc32
        if part != length:
            taken = answer[0] == Ffa.MEM_FRAG_RX.smc32 and answer[3] == part
        if not taken:
            self._unshare(ranges)
        return answer

    def fragment(self, regs: HostContext) -> Response:
        """FFA_MEM_FRAG_TX: a further part of a descriptor, constituents only."""
        proxy = self._proxy
        low, high, part, endpoint = (regs[n] & _MASK32 for n in range(1, 5))
        if part > PAGE_SIZE or part % RANGE_SIZE or not proxy.host_tx:
            return failure(FfaReturn.INVALID_PARAMETERS)
        ram = proxy.hyp.machine.ram
        data = ram.read(proxy.host_tx, part)
        ram.write(proxy.buffer(proxy.tx, "TX"), data)
        ranges = ffa.ranges_of(data)
        if not self._share(ranges):
            # The transaction is over; what its earlier parts shared stays so, which the original regrets in a comment.
            if proxy.ask(Ffa.MEM_RECLAIM.smc32, low, high, 0)[0] != Ffa.SUCCESS.smc32:
                raise HypBug(f"FF-A: EL3 does not give up the transaction {high << 32 | low:#x}")
            return failure(proxy.rules.fragment_denied)
        answer = proxy.ask(Ffa.MEM_FRAG_TX.smc32, low, high, part, endpoint)
        if answer[0] not in (Ffa.SUCCESS.smc32, Ffa.MEM_FRAG_RX.smc32):
            self._unshare(ranges)
        return answer

    def reclaim(self, regs: HostContext) -> Response:
        """FFA_MEM_RECLAIM: EL3 says which pages the handle stands for, and once it let go of them they are the host's."""
        proxy = self._proxy
        low, high, flags = (regs[n] & _MASK32 for n in range(1, 4))
        ram = proxy.hyp.machine.ram
        request = Region(HOST_ID, 0, 0, high << 32 | low, 0, 0, 0, 0, 0, 0).pack(ffa.VERSION_1_1, [])
        ram.write(proxy.buffer(proxy.tx, "TX"), request[: ffa.REGION_SIZE])
        answer = proxy.ask(Ffa.MEM_RETRIEVE_REQ.smc64, ffa.REGION_SIZE, ffa.REGION_SIZE)
        if answer[0] != Ffa.MEM_RETRIEVE_RESP.smc32:
            return answer
        length, part = answer[1] & _MASK32, answer[2] & _MASK32
        data = ram.read(proxy.rx, min(part, PAGE_SIZE))
        version = proxy.version or ffa.VERSION_1_0
        offset = Region.parse(data.ljust(ffa.REGION_SIZE + ACCESS_SIZE, b"\0"), version).composite
        room = 0 if proxy.rules.trusts_firmware else COMPOSITE_SIZE
        if offset + room > length or part > PAGE_SIZE:
            if proxy.rules.trusts_firmware:
                raise HypBug(f"FF-A: EL3 describes a region with offset {offset:#x} and {part:#x} of {length:#x} bytes")
            self._release()
            return failure(FfaReturn.ABORTED)
        if length > DESCRIPTOR_BYTES:
            self._release()
            return failure(FfaReturn.NO_MEMORY)
        self._release()
        while len(data) < length:
            answer = proxy.ask(Ffa.MEM_FRAG_RX.smc32, low, high, len(data), HOST_ID)
            part = answer[3] & _MASK32
            if answer[0] != Ffa.MEM_FRAG_TX.smc32 or not 0 < part <= PAGE_SIZE:
                return failure(FfaReturn.INVALID_PARAMETERS)
            data += ram.read(proxy.rx, part)
            self._release()
        answer = proxy.ask(Ffa.MEM_RECLAIM.smc32, low, high, flags)
        if answer[0] == Ffa.SUCCESS.smc32:
            count = ffa.composite_of(data.ljust(offset + COMPOSITE_SIZE, b"\0"), offset)[1]
            if not proxy.rules.trusts_firmware and offset + COMPOSITE_SIZE + RANGE_SIZE * count > length:
                return failure(FfaReturn.ABORTED)
            self._unshare(ffa.ranges_of(data[offset + COMPOSITE_SIZE :])[:count])
        return answer

    def _release(self) -> None:
        if self._proxy.rules.releases_rx:
            self._proxy.release_rx()
