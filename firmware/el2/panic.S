// How EL2 ends.

// Panics touch no stack: it may be what is broken.
panic_common:
        // Python has put the CPU on a good stack and the host context in x0.
        ldr     x9, panic_notifier_fn
        cbz     x9, panic_finish
        CALL_CHECKED kcfi_notifier
panic_finish:
        hvc     #0x8000
        b       panic_finish

panic_from_el2:
        hvc     #0x8000
        b       panic_common
panic_from_host:
        hvc     #0x8000
        b       panic_common

// What Python finds broken while it serves an op or a trap ends here, as a BUG() or a bad access in the hypervisor's own
// code does: the registers are those of the caller, x9 holds the address at fault.
hyp_fault_load:
        ldrb    w9, [x9]
        b       hyp_bug
hyp_fault_store:
        strb    wzr, [x9]
        b       hyp_bug
fw_write_hfgwtr:
        msr     HFGWTR_EL2, x0          // undefined on a CPU without FEAT_FGT
        ret
hyp_bug:
        brk     #0x800
