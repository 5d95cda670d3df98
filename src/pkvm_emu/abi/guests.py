"""What differs between Android generations in guests: the hypercalls that give them pages, and the SMC handlers of modules.

Sources: arch/arm64/kvm/hyp/nvhe/{hyp-main,pkvm,modules}.c of 6.12.23; of the older branches the names and numbers of
hypercalls and the prototypes in asm/kvm_pkvm_module.h were read, not the bodies.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GuestRules:
    """Guests of one generation.

    Attributes:
        map_hypercall: gives or shares a page by what the VM is (``host_map_guest(pfn, gfn, pages, prot)``); None: there are
            ``host_donate_guest(pfn, gfn, pages)`` and ``host_share_guest(pfn, gfn, prot, pages)``.
        pages_per_call: how many pages one such call takes at most; None: any number.
        unshare_hypercall: takes a shared page back, ``(handle, gfn, pages)``; None: there is none.
        smc_result_words: registers that a module's guest SMC handler answers; 0: modules are not asked.
        assigns_devices: the hypercalls that give devices to guests exist.
        unknown_exits_are_illegal: an exit of a protected guest that EL2 has no handler for (an SMC that nobody wants) is an illegal
            trap, exit code 3 for the host.
    """

    map_hypercall: str | None
    pages_per_call: int | None
    unshare_hypercall: str | None
    smc_result_words: int
    assigns_devices: bool
    unknown_exits_are_illegal: bool = False


#: By ops layout. Read in sources for a16; for a14 and a15 the arguments of the hypercalls are inferred.
GUESTS: dict[str, GuestRules] = {
    "a14": GuestRules("host_map_guest", 1, None, 0, assigns_devices=False),
    "a15": GuestRules("host_map_guest", None, "host_unmap_guest", 4, assigns_devices=False),
    "a16": GuestRules(None, None, "host_unshare_guest", 18, assigns_devices=True, unknown_exits_are_illegal=True),
}
