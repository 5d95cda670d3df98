// Power states of CPUs: the calls that go on to EL3, and the way in for a CPU that EL3 starts.

.set PSCI_CPU_ENTRY, 2

// relay_psci(host context, event for the notifier or -1, x0..x3 for EL3)
relay_psci:
        stp     x29, x30, [sp, #-64]!
        mov     x29, sp
        stp     x19, x20, [sp, #16]
        stp     x21, x22, [sp, #32]
        str     x23, [sp, #48]
        mov     x19, x0
        mov     x20, x2
        mov     x21, x3
        mov     x22, x4
        mov     x23, x5
        tbnz    w1, #31, 1f
        ldr     x9, psci_notifier_fn
        cbz     x9, 1f
        mov     w0, w1
        mov     x1, x19
psci_dispatch:
        CALL_CHECKED kcfi_psci
1:      mov     x0, x20
        mov     x1, x21
        mov     x2, x22
        mov     x3, x23
        smc     #0
        // Back here where the CPU kept its registers; one that went off or down comes in below.
        bl      op_psci_result
        ldr     x23, [sp, #48]
        ldp     x21, x22, [sp, #32]
        ldp     x19, x20, [sp, #16]
        ldp     x29, x30, [sp], #64
        ret

// EL3 enters here by physical address, with the MMU off: after CPU_ON, and after a suspend that lost the registers.
// Python sets the registers of EL2 as on the first start and goes on at cpu_entry_mapped, with the MMU on.
cpu_entry:
        mov     x1, #1
        b       op_init_cpu
cpu_resume:
        mov     x1, xzr
        b       op_init_cpu

// x0: host context, x1: 1 after CPU_ON.
cpu_entry_mapped:
        mov     x29, x0
        mov     x19, x1
        ldr     w1, config_pauth
        cbz     w1, 1f
        add     x1, x29, #HYP_KEYS
        bl      load_keys
1:      ldr     w1, config_tracing
        cbz     w1, 2f
        bl      op_enter
2:      mov     x0, x19
        bl      op_cpu_entry            // x0 of the host context, and where the host goes on
        ldr     x9, psci_notifier_fn
        cbz     x9, 3f
        mov     w0, #PSCI_CPU_ENTRY
        mov     x1, x29
psci_entry_dispatch:
        CALL_CHECKED kcfi_psci
3:      ldr     w1, config_tracing
        cbz     w1, 4f
        bl      op_leave
4:      b       host_return
