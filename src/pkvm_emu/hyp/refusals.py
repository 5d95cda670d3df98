"""The log of refusals: which op or hypercall was refused what, and by which rule.

A refusal costs one record; everything in words is made when somebody asks (:mod:`pkvm_emu.explain`). The errno that the
caller gets is not touched. Ownership refusals bring their rule with them; other ops say theirs with
:meth:`Refusals.refuse`:

>>> if taken is None:
...     return hyp.part(Refusals).refuse(-EBUSY, "all 16 slots are taken")

and what says nothing is looked up in :data:`RULES`.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import E2BIG, EBUSY, EINVAL, ENODEV, ENOENT, ENOMEM, EOPNOTSUPP, EPERM, ERANGE
from typing import TYPE_CHECKING, Any, NamedTuple

from pkvm_emu.hyp import layout
from pkvm_emu.hyp.ownership_log import Refusal
from pkvm_emu.hyp.page_state import Component
from pkvm_emu.hyp.pgtable import stage2_prot
from pkvm_emu.hyp.registry import hyp_part
from pkvm_emu.machine.calling import signature_of
from pkvm_emu.machine.state import State, StateList

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

_NOT_SUPPORTED = (1 << 64) - 1
_HCALL_BASE, _HINT = 0xC600_0000, 1 << 16
_PAGE_MASK = 0xFFF
_PERMISSION, _FSC_TYPE = 0x0C, 0x3C

_ONE_SLOT = "there is one slot, it is taken, and nothing is ever unregistered"
_REQUEST = "a request to the host waits already on this CPU"
_CHAIN = "all {slots} slots are taken, and nothing is ever unregistered"
_PROT = (
    "EL2 cannot have this protection: R is needed, W and X exclude each other, X is for normal memory, and PXN, UXN and "
    "DEVICE with NC do not exist there"
)
_PRIVATE_FULL = (
    "the mapping would reach beyond the private range of EL2 ({left:#x} bytes are left, none are given back)"
)

#: Rules of ops and hypercalls that say none themselves.
RULES: dict[tuple[str, int], str] = {
    ("register_serial_driver", EBUSY): _ONE_SLOT,
    ("register_default_trap_handler", EBUSY): _ONE_SLOT,
    ("register_illegal_abt_notifier", EBUSY): _ONE_SLOT,
    ("register_hyp_panic_notifier", EBUSY): _ONE_SLOT,
    ("register_psci_notifier", EBUSY): _ONE_SLOT,
    ("register_unmask_serror", EBUSY): _ONE_SLOT,
    ("register_unmask_serror", EINVAL): "both functions are needed, neither may be NULL",
    ("register_host_smc_handler", EBUSY): _CHAIN,
    ("register_host_perm_fault_handler", EBUSY): _CHAIN,
    ("register_guest_smc_handler", EBUSY): _CHAIN,
    ("register_guest_smc_handler", EINVAL): "no VM has this handle",
    ("register_guest_trng_ops", EBUSY): _ONE_SLOT,
    ("device_register_reset", ENODEV): "no assignable device has a register at this address",
    ("device_register_reset", EBUSY): "the device has a reset handler already",
    ("guest_stage2_pa", EINVAL): "no VM has this handle, or no page is mapped at this guest address",
    ("host_stage2_get_leaf", ERANGE): "the address is beyond the physical address size",
    ("create_private_mapping", ENOMEM): _PRIVATE_FULL,
    ("create_private_mapping", EINVAL): _PROT,
    ("map_module_page", EINVAL): _PROT,
    ("map_module_page", ENOMEM): "no page is left for EL2 tables",
    ("hyp_alloc_errno", ENOMEM): "the last hyp_alloc() lacked pages: the host has to donate more to the heap",
    ("hyp_alloc_errno", EINVAL): "the last hyp_alloc() was for a size that the heap never has",
    ("hyp_alloc_errno", E2BIG): "the last hyp_alloc() did not fit what is left of the heap's address space",
    ("request_hyp_alloc", ENOENT): "no allocation lacks pages",
    ("request_hyp_alloc", EBUSY): _REQUEST,
    ("iommu_request", EBUSY): _REQUEST,
    ("iommu_init_device", E2BIG): "the number of the HVC power domain is too large",
    ("iommu_init_device", EOPNOTSUPP): "there is no such kind of power domain",
    ("iommu_init", ENODEV): "the driver lacks one of the functions that every IOMMU driver has",
    ("register_hyp_event_ids", ENOMEM): "no further module can have events",
    ("hyp_alloc_mgt_refill", EINVAL): "there is no such allocator, or it is not in use",
    ("register_hcall", ENOMEM): "all {slots} dynamic hypercalls are registered, and nothing is ever unregistered",
    ("prot_finalize", EPERM): "the host is deprivileged on this CPU already",
}
#: Where the present holders of a slot or a chain are: ``(table, count)``; a slot has no count.
_HOLDERS = {
    "register_serial_driver": ("serial_putc_fn", None),
    "register_default_trap_handler": ("default_trap_fn", None),
    "register_illegal_abt_notifier": ("abort_notifier_fn", None),
    "register_hyp_panic_notifier": ("panic_notifier_fn", None),
    "register_psci_notifier": ("psci_notifier_fn", None),
    "register_unmask_serror": ("unmask_serror_fn", None),
    "register_host_smc_handler": ("smc_table", "smc_count"),
    "register_host_perm_fault_handler": ("perm_table", "perm_count"),
    "register_guest_smc_handler": ("guest_smc_table", "guest_smc_count"),
    "register_hcall": ("hcall_table", "hcall_count"),
}


class RefusalRecord(NamedTuple):
    """One refusal.

    Attributes:
        kind: ``op`` (called by a module at EL2), ``hypercall`` (made by the host) or ``access`` (a memory access of the host).
        name: the op or hypercall, ``host_mem_abort`` for an access.
        args: its raw argument registers; the IPA for an access.
        errno: the negative errno; None for a hypercall that was not answered at all (x0 = -1).
        rule: the rule that was broken, in one sentence.
        pc, el: the instruction that asked, and its exception level.
        ownership: page, owner and states at that moment, where a page is to blame.
        holders: hyp VAs of the functions that hold the slots that were asked for.
    """

    kind: str
    name: str
    args: tuple[int, ...]
    errno: int | None
    rule: str
    pc: int
    el: int
    ownership: Refusal | None = None
    holders: tuple[int, ...] = ()


@hyp_part
class Refusals(State):
    """The log of one hypervisor.

    Attributes:
        entries: the refusals, oldest first.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        super().__init__(hyp.machine.journal, "hyp.refusals")
        self._hyp = hyp
        self.entries: StateList[RefusalRecord] = StateList(hyp.machine.journal)
        #: What the op that is being served said about its refusal.
        self._said: Refusal | None = None

    # For ops

    def refuse(self, errno: int, rule: str, page: int | None = None) -> int:
        """Say by which rule the op or hypercall that is being served is refused.

        Args:
            errno: the negative errno that it returns.
            rule: the rule that was broken, in one sentence without a full stop.
            page: PA of the page that broke it, if one did.

        Returns:
            ``errno``, so that ``return refuse(...)`` is the whole refusal.
        """
        owner = host_state = hyp_state = None
        ownership = self._hyp.ownership
        if page is not None:
            page &= ~_PAGE_MASK
            owner = ownership.owner_of(page)
            host_state, hyp_state = ownership.host_state(page), ownership.hyp_state(page)
        self._said = Refusal("", (), errno, rule, page, owner, host_state, hyp_state, len(ownership.events))
        return errno

    # For those who serve ops

    def watch(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, watched: a service of EL2 by its name as the services have it (``ops->host_share_hyp()``, ``op_host_hcall``).

        Services that cannot refuse come back as they are.
        """
        if name.startswith("ops->"):
            return self._watch_op(name.removeprefix("ops->").removesuffix("()"), call)
        if name == "op_host_hcall":
            return self._watch_hypercalls(call)
        return self._watch_aborts(call) if name == "op_inject_abort" else call

    def _watch_op(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*registers: int) -> Any:
            mark, outer, self._said = self._hyp.ownership.last_refusal, self._said, None
            result = call(*registers)
            if type(result) is int and -4096 < result < 0:
                pc = self._hyp.machine.engine.read("x30") - 4
                self._note("op", name, registers, result, pc, 2, mark)
            self._said = outer
            return result

        return watched

    def _watch_hypercalls(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*registers: int) -> Any:
            hyp = self._hyp
            regs = hyp.host_context
            function, first = regs[0], regs[1]
            mark, self._said = hyp.ownership.last_refusal, None
            result = call(*registers)
            if result is not None and not result[0]:
                if regs[0] == _NOT_SUPPORTED:
                    self._note_unanswered(function, first)
                elif regs[0] == 0 and regs[1] > _NOT_SUPPORTED - 4095:
                    name = hyp.traps.name_of((function & ~_HINT) - _HCALL_BASE) or f"{function:#x}"
                    args = (first, *[regs[index] for index in range(2, 8)])
                    pc = hyp.machine.engine.read("elr_el2") - 4
                    self._note("hypercall", name, args, regs[1] - _NOT_SUPPORTED - 1, pc, 1, mark)
            return result

        return watched

    def _watch_aborts(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*registers: int) -> Any:
            self._note_abort()
            return call(*registers)

        return watched

    # Records

    def _note(
        self, kind: str, name: str, registers: tuple[int, ...], errno: int, pc: int, el: int, mark: Refusal | None
    ) -> None:
        found = self._said
        if found is None:
            latest = self._hyp.ownership.last_refusal
            found = latest if latest is not mark and latest is not None and latest.errno == errno else None
        rule = found.rule if found is not None else self._known_rule(name, -errno)
        holders = self._holders(name) if errno in (-EBUSY, -ENOMEM) else ()
        args = registers[: _argument_count(kind, name, len(registers))]
        blamed = found if found is not None and found.page is not None else None
        self.entries.append(RefusalRecord(kind, name, args, errno, rule, pc, el, blamed, holders))

    def _note_unanswered(self, function: int, first: int) -> None:
        hyp = self._hyp
        name = hyp.traps.name_of((function & ~_HINT) - _HCALL_BASE)
        closed = hyp.generation.hypercalls["prot_finalize"]
        if name is None:
            rule = "no hypercall has this id"
        elif hyp.finalised and hyp.generation.hypercalls[name] < closed:
            rule = "hypercalls of the boot are closed once the host is deprivileged"
        else:
            rule = "this hypercall is not served"
        pc = hyp.machine.engine.read("elr_el2") - 4
        self.entries.append(RefusalRecord("hypercall", name or f"{function:#x}", (first,), None, rule, pc, 1))

    def _note_abort(self) -> None:
        hyp, engine = self._hyp, self._hyp.machine.engine
        ipa = engine.read_sysreg("HPFAR_EL2") >> 4 << 12 | engine.read("far_el2") & _PAGE_MASK
        page, ownership = ipa & ~_PAGE_MASK, hyp.ownership
        owner, host_state = ownership.owner_of(page), ownership.host_state(page)
        leaf = ownership.host.get_leaf(page)
        rule = "the page is not the host's to touch"
        if owner is Component.HOST and engine.read("esr_el2") & _FSC_TYPE == _PERMISSION and leaf is not None:
            allowed = "".join(
                letter for letter, bit in (("R", 4), ("W", 2), ("X", 1)) if stage2_prot(leaf.descriptor) & bit
            )
            rule = (
                f"the host's stage-2 gives only {allowed or 'nothing'} here, and no permission-fault handler settled it"
            )
        blamed = Refusal(
            "host_mem_abort",
            (ipa,),
            -EPERM,
            rule,
            page,
            owner,
            host_state,
            ownership.hyp_state(page),
            len(ownership.events),
        )
        el = engine.read_sysreg("SPSR_EL2") >> 2 & 3
        pc = engine.read("elr_el2")
        self.entries.append(RefusalRecord("access", "host_mem_abort", (ipa,), -EPERM, rule, pc, el, blamed))

    def _known_rule(self, name: str, errno: int) -> str:
        rule = RULES.get((name, errno))
        if rule is None:
            return "its own check of its arguments failed"
        generation = self._hyp.generation
        slots = {
            "register_host_smc_handler": generation.smc_handler_slots,
            "register_host_perm_fault_handler": generation.perm_fault_handler_slots,
            "register_guest_smc_handler": generation.guest_smc_slots,
            "register_hcall": generation.dyn_hcall_max,
        }
        count = slots.get(name, 1)
        if count == 1 and rule is _CHAIN:
            return _ONE_SLOT
        return rule.format(slots=count, left=layout.VMEMMAP_BASE - self._hyp.private_cursor)

    def _holders(self, name: str) -> tuple[int, ...]:
        place = _HOLDERS.get(name)
        if place is None:
            return ()
        hyp, (table, count) = self._hyp, place
        if count is None:
            return (hyp.read_word(table),)
        base = hyp.data_pa(table)
        return tuple(hyp.machine.ram.read_u64(base + 8 * index) for index in range(hyp.read_word(count)))


def _argument_count(kind: str, name: str, registers: int) -> int:
    from pkvm_emu.hyp import registry

    served = registry.OPS.get(name) if kind == "op" else registry.HYPERCALLS.get(name)
    return registers if served is None else len(signature_of(served.function).names)
