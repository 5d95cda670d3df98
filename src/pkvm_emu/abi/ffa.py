"""How the hypervisor's FF-A proxy differs between the generations. Source: arch/arm64/kvm/hyp/nvhe/ffa.c of each line."""

from __future__ import annotations

from dataclasses import dataclass

from pkvm_emu.arch.ffa import VERSION_1_0, VERSION_1_1, Ffa, FfaReturn

_EACCES = 13


@dataclass(frozen=True, slots=True)
class FfaRules:
    """The proxy of a generation.

    Attributes:
        last: number of the last function that counts as FF-A.
        newest: the version that it asks the firmware for at boot.
        negotiates: the host's FFA_VERSION is answered by the proxy, and has to come before any other call.
        unnegotiated_answers: a call before that gets INVALID_PARAMETERS; False: its registers stay as they are.
        answers_id: FFA_ID_GET and FFA_RX_RELEASE are answered, else they go on.
        relays_partition_info: FFA_PARTITION_INFO_GET goes through the proxy's buffer, else on.
        relays_direct: direct requests are checked for their sender; False: they go on where they are supported.
        unsupported_direct: FFA_MSG_SEND_DIRECT_REQ in SMC32 form is refused.
        releases_rx: FFA_RX_RELEASE after each part of a retrieved descriptor.
        denied: what FFA_ERROR carries where pages of the first part of a descriptor are not the host's own.
        fragment_denied: the same for further parts.
        overflow: what it carries for an offset that overflows.
        head_by_version: a descriptor has at least the head of the version in use; False: that of 1.1 in any case.
        aligned_ranges: an address inside a page is denied; False: it stands for its page.
        trusts_firmware: a description of a region that makes no sense is a WARN; False: ABORTED.
        traced: the events hyp_exit and hyp_enter are around the proxy's own SMCs.
    """

    last: int
    newest: int
    negotiates: bool
    unnegotiated_answers: bool
    answers_id: bool
    relays_partition_info: bool
    relays_direct: bool
    unsupported_direct: bool
    releases_rx: bool
    denied: int
    fragment_denied: int
    overflow: int
    head_by_version: bool
    aligned_ranges: bool
    trusts_firmware: bool
    traced: bool


#: 6.12 takes errnos for the results of sharing; one of them reaches the host as it is.
FFA_RULES: dict[str, FfaRules] = {
    "android14-6.1": FfaRules(
        last=0x7F,
        newest=VERSION_1_0,
        negotiates=False,
        unnegotiated_answers=True,
        answers_id=False,
        relays_partition_info=False,
        relays_direct=False,
        unsupported_direct=True,
        releases_rx=False,
        denied=FfaReturn.DENIED,
        fragment_denied=FfaReturn.DENIED,
        overflow=FfaReturn.INVALID_PARAMETERS,
        head_by_version=True,
        aligned_ranges=False,
        trusts_firmware=True,
        traced=False,
    ),
    "android15-6.6": FfaRules(
        last=0xFF,
        newest=VERSION_1_1,
        negotiates=True,
        unnegotiated_answers=False,
        answers_id=False,
        relays_partition_info=True,
        relays_direct=False,
        unsupported_direct=False,
        releases_rx=True,
        denied=FfaReturn.DENIED,
        fragment_denied=FfaReturn.DENIED,
        overflow=FfaReturn.INVALID_PARAMETERS,
        head_by_version=True,
        aligned_ranges=True,
        trusts_firmware=False,
        traced=True,
    ),
    "android16-6.12": FfaRules(
        last=0xFF,
        newest=VERSION_1_1,
        negotiates=True,
        unnegotiated_answers=True,
        answers_id=True,
        relays_partition_info=True,
        relays_direct=True,
        unsupported_direct=False,
        releases_rx=True,
        denied=FfaReturn.DENIED,
        fragment_denied=-_EACCES,
        overflow=FfaReturn.NOT_SUPPORTED,
        head_by_version=False,
        aligned_ranges=False,
        trusts_firmware=True,
        traced=True,
    ),
}

#: 5.15 of Android 14 has the proxy of its 6.1.
FFA_RULES["android14-5.15"] = FFA_RULES["android14-6.1"]

#: Bytes of the longest descriptor, all parts together: 4096 constituents, in whole pages.
DESCRIPTOR_BYTES = 17 * 4096

#: By id: what the host may not call, in any generation.
UNSUPPORTED: frozenset[int] = frozenset(
    {
        Ffa.MEM_RETRIEVE_REQ.smc64,
        Ffa.MEM_RETRIEVE_RESP.smc32,
        Ffa.MEM_RELINQUISH.smc32,
        Ffa.MEM_OP_PAUSE.smc32,
        Ffa.MEM_OP_RESUME.smc32,
        Ffa.MEM_FRAG_RX.smc32,
        Ffa.MEM_DONATE.smc64,
        Ffa.MSG_SEND.smc32,
        Ffa.MSG_POLL.smc32,
        Ffa.MSG_WAIT.smc32,
        Ffa.MSG_SEND_DIRECT_RESP.smc32,
        Ffa.RXTX_MAP.smc32,
        Ffa.MEM_DONATE.smc32,
        Ffa.MEM_RETRIEVE_REQ.smc32,
    }
)
