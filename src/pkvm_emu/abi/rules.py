"""Types of the per-generation data: how the hypervisor of a generation behaves, as values and not as code.

The rows themselves are in abi/generation.py.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HypSection:
    """One section of a module's EL2 part.

    Attributes:
        field: member of struct pkvm_el2_module that describes it (``text`` → ``text.start``, ``text.end``).
        elf_name: output section in the .ko.
        prot: pKVM protection bits of its hypervisor mapping.
    """

    field: str
    elf_name: str
    prot: int


@dataclass(frozen=True, slots=True)
class FaultRules:
    """Host stage-2 faults and SMCs.

    Attributes:
        perm_fault_chain: ``single`` (the one handler's result counts), ``first-nonzero`` (stop there and use it; all
            zero = handled) or ``first-zero`` (stop there, handled; none = -EPERM).
        perm_fault_tries_idmap: a permission fault goes through the lazy identity map before the handler is asked.
        other_faults_try_idmap: so do faults that are neither translation nor permission faults; else -EPERM.
        iommu_hook_on_memory: the IOMMU's abort hook is asked for every data abort, not only for MMIO addresses.
        smc_event_before_forward: the host_smc trace event precedes the call into firmware.
        scmi_relay: SCMI calls are looked at between FF-A and the module handlers.
        guest_smc_per_vm: register_guest_smc_handler takes a VM handle; otherwise handlers are global.
    """

    perm_fault_chain: str
    perm_fault_tries_idmap: bool
    other_faults_try_idmap: bool
    iommu_hook_on_memory: bool
    smc_event_before_forward: bool
    scmi_relay: bool
    guest_smc_per_vm: bool


@dataclass(frozen=True, slots=True)
class TracingRules:
    """Hypervisor tracing.

    Attributes:
        module_events: how a module's events become known: ``none``, ``op`` (register_hyp_event_ids) or ``init``
            (the init_module hypercall registers them).
        module_printk: trace_hyp_printk in modules.
        max_event_modules: further modules with events get -ENOMEM.
        max_printk_formats: formats of all modules together.
        tracing_on_strict: writes to tracing_on have to be exactly ``0`` or ``1``.
        trace_pipe_read_size: the only size a read may have, in bytes; None: any.
        trace_read_text: what reading ``trace`` gives; None: -EPERM.
        buffer_size_shows_loaded: buffer_size_kb has ``(loaded)`` or ``(unloaded)`` behind the number.
        has_trace_clock: the file trace_clock exists.
        trace_write_unloads: opening ``trace`` for writing unloads the buffer (-EBUSY while it is in use); otherwise it empties it.
        unloads_when_idle: the buffer goes when tracing is off, nobody reads and nothing is left to read.
        raw_pages: per_cpu/cpuN/trace_pipe_raw gives pages of the buffer; otherwise the text of trace_pipe.
        per_cpu_trace: per_cpu/cpuN/trace exists.
        early_events: of which modules ``hyp_event=`` finds events on a device: ``none`` or ``first``.
        unknown_event_message: what ``hyp_event=`` prints for an unknown name; None: kept in silence.
        core_events: names in id order, the first is id 0 (FTRACE builds aside;
            which of them exist before android16 is inferred).
    """

    module_events: str
    module_printk: bool
    max_event_modules: int
    max_printk_formats: int
    tracing_on_strict: bool
    trace_pipe_read_size: int | None
    trace_read_text: str | None
    buffer_size_shows_loaded: bool
    has_trace_clock: bool
    trace_write_unloads: bool
    unloads_when_idle: bool
    raw_pages: bool
    per_cpu_trace: bool
    early_events: str
    unknown_event_message: str | None
    core_events: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BootRules:
    """What the boot does and prints.

    Attributes:
        clear_firmware_message: printed when a protected module failed.
        finalize_error_message: printf format with one %d.
        flushes_deferred_probes: deferred device probes run after each module.
        init_error_is_fatal: an EL2 init that fails ends in a hypervisor BUG (observed on android16 6.12.23; the error
            path unmaps module pages, absent sections included).
        events_enabled_after_init: ``hyp_event=`` names are applied when a module has loaded.
        iommu_and_devices: the IOMMU driver, then assignable devices are initialised before finalisation.
        hyp_stack_bytes: stack of a CPU at EL2 (one page below android16 was not read).
        register_call_place: file and line of the WARN of a refused ``__pkvm_register_el2_call`` (6.12.23; empty where it
            was not read).
        patches_el2_imports: EL2 calls to functions of other modules are relocated when the EL2 half is loaded.
        import_order_place: file and line of the WARN about a function above its caller at EL2.
    """

    clear_firmware_message: str
    finalize_error_message: str
    flushes_deferred_probes: bool
    init_error_is_fatal: bool
    events_enabled_after_init: bool
    iommu_and_devices: bool
    hyp_stack_bytes: int
    register_call_place: str = ""
    patches_el2_imports: bool = False
    import_order_place: str = ""


FAULTS = {
    "a14": FaultRules(
        perm_fault_chain="single",
        perm_fault_tries_idmap=True,
        other_faults_try_idmap=True,
        iommu_hook_on_memory=True,
        smc_event_before_forward=True,
        scmi_relay=False,
        guest_smc_per_vm=False,
    ),
    "a15": FaultRules(
        perm_fault_chain="first-nonzero",
        perm_fault_tries_idmap=True,
        other_faults_try_idmap=True,
        iommu_hook_on_memory=False,
        smc_event_before_forward=False,
        scmi_relay=False,
        guest_smc_per_vm=True,
    ),
    "a16": FaultRules(
        perm_fault_chain="first-zero",
        perm_fault_tries_idmap=False,
        other_faults_try_idmap=False,
        iommu_hook_on_memory=False,
        smc_event_before_forward=False,
        scmi_relay=True,
        guest_smc_per_vm=False,
    ),
}

# The linker sorts the event sections by name, so ids are in this order too (observed on android16 6.12.23).
_CORE_EVENTS = ("host_hcall", "host_mem_abort", "host_smc", "hyp_enter", "hyp_exit")
_NOT_YET = "** Reading trace not yet supported **\n"

TRACING = {
    "a14": TracingRules(
        module_events="none",
        module_printk=False,
        max_event_modules=0,
        max_printk_formats=0,
        tracing_on_strict=True,
        trace_pipe_read_size=4096,
        trace_read_text=_NOT_YET,
        buffer_size_shows_loaded=False,
        has_trace_clock=False,
        trace_write_unloads=True,
        unloads_when_idle=False,
        raw_pages=True,
        per_cpu_trace=True,
        early_events="none",
        unknown_event_message="Couldn't find hyp event %s",
        core_events=_CORE_EVENTS,
    ),
    "a15": TracingRules(
        module_events="op",
        module_printk=False,
        max_event_modules=16,
        max_printk_formats=0,
        tracing_on_strict=True,
        trace_pipe_read_size=None,
        trace_read_text=_NOT_YET,
        buffer_size_shows_loaded=False,
        has_trace_clock=True,
        trace_write_unloads=True,
        unloads_when_idle=False,
        raw_pages=True,
        per_cpu_trace=False,
        early_events="none",
        unknown_event_message="Couldn't find hyp event %s",
        core_events=("__hyp_printk", *_CORE_EVENTS, "psci_mem_protect"),
    ),
    "a16": TracingRules(
        module_events="init",
        module_printk=True,
        max_event_modules=16,
        max_printk_formats=255,
        tracing_on_strict=False,
        trace_pipe_read_size=None,
        trace_read_text=None,
        buffer_size_shows_loaded=True,
        has_trace_clock=True,
        trace_write_unloads=False,
        unloads_when_idle=True,
        raw_pages=False,
        per_cpu_trace=True,
        early_events="first",
        unknown_event_message=None,
        core_events=(
            *("__hyp_printk", *_CORE_EVENTS, "iommu_idmap", "iommu_idmap_complete"),
            *("psci_mem_protect", "selftest", "vcpu_illegal_trap"),
        ),
    ),
}

BOOT = {
    "a14": BootRules(
        clear_firmware_message="Clearing unused pKVM firmware memory",
        finalize_error_message="Failed to de-privilege the host kernel: %d",
        flushes_deferred_probes=False,
        init_error_is_fatal=False,
        events_enabled_after_init=False,
        iommu_and_devices=False,
        hyp_stack_bytes=4096,
    ),
    "a15": BootRules(
        clear_firmware_message="Clearing pKVM firmware memory",
        finalize_error_message="Failed to finalize Hyp protection: %d",
        flushes_deferred_probes=True,
        init_error_is_fatal=False,
        events_enabled_after_init=True,
        iommu_and_devices=False,
        hyp_stack_bytes=4096,
    ),
    "a16": BootRules(
        clear_firmware_message="Clearing pKVM firmware memory",
        finalize_error_message="Failed to finalize Hyp protection: %d",
        flushes_deferred_probes=False,
        init_error_is_fatal=True,
        events_enabled_after_init=True,
        iommu_and_devices=True,
        hyp_stack_bytes=8192,
        register_call_place="arch/arm64/kvm/pkvm.c:1482",
        patches_el2_imports=True,
        import_order_place="arch/arm64/kvm/pkvm.c:1184",
    ),
}
