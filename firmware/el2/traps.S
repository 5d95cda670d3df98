// What a trap of the host becomes, and its hypercalls.

// handle_trap(host context)
handle_trap:
        stp     x29, x30, [sp, #-48]!
        mov     x29, sp
        stp     x19, x20, [sp, #16]
        str     x21, [sp, #32]
        mov     x19, x0
        ldr     x9, unmask_serror_fn
        cbz     x9, 1f
        CALL_CHECKED kcfi_unmask_serror
        tbz     w0, #0, 1f
        mrs     x1, HCR_EL2
        orr     x1, x1, #0x20
        msr     HCR_EL2, x1
        msr     daifclr, #4
1:      ldr     w1, config_tracing
        cbz     w1, 4f
        bl      op_enter
4:      mrs     x1, ESR_EL2
        lsr     x2, x1, #EC_SHIFT
        cmp     x2, #EC_HVC64
        b.eq    trap_hvc
        cmp     x2, #EC_SMC64
        b.eq    trap_smc
        cmp     x2, #EC_DABT_LOW
        b.eq    trap_abort
        cmp     x2, #EC_IABT_LOW
        b.eq    trap_abort
        ldr     x9, default_trap_fn
        cbz     x9, 2f
        mov     x0, x19
        CALL_CHECKED kcfi_trap_handler
        tbnz    w0, #0, trap_done
2:      mov     x0, x19
        bl      op_unhandled_trap       // nobody wants it: a hypervisor BUG

trap_hvc:
        mov     x0, x19
        bl      handle_host_hcall
        b       trap_done
trap_smc:
        mov     x0, x19
        bl      handle_host_smc
        b       trap_done
trap_abort:
        mov     x0, x19
        bl      handle_host_mem_abort
trap_done:
        ldr     w1, config_tracing
        cbz     w1, 5f
        bl      op_leave
5:      ldr     x9, mask_serror_fn
        cbz     x9, 3f
        CALL_CHECKED kcfi_mask_serror
        mrs     x1, HCR_EL2
        bic     x1, x1, #0x20
        msr     HCR_EL2, x1
        msr     daifset, #4
3:      ldr     x21, [sp, #32]
        ldp     x19, x20, [sp, #16]
        ldp     x29, x30, [sp], #48
        ret

// Dynamic hypercalls go straight to the module's handler; the others are the hypervisor's own.
handle_host_hcall:
        stp     x29, x30, [sp, #-32]!
        mov     x29, sp
        str     x19, [sp, #16]
        mov     x19, x0
        ldr     x1, [x19]
        ldr     x2, config_hcall_hint_mask
        bic     x1, x1, x2
        ldr     x2, config_hcall_base
        sub     x1, x1, x2
        ldr     x2, hcall_count
        cmp     x1, x2
        b.hs    1f
        ldr     w2, config_hcall_presets_x0
        cbz     w2, 2f
        str     xzr, [x19]
2:      adr     x2, hcall_table
        ldr     x9, [x2, x1, lsl #3]
        mov     x0, x19
hcall_dispatch:
        CALL_CHECKED kcfi_hcall
hcall_return:
        b       4f
1:      mov     x0, x19
        bl      op_host_hcall
        // x0: module function to call on the hypervisor's behalf (EL2 init), or 0. Its result goes back to the op.
        cbz     x0, 4f
        mov     x9, x0
        mov     x0, x1
        CALL_CHECKED kcfi_init
        bl      op_host_hcall_result
4:      ldr     x19, [sp, #16]
        ldp     x29, x30, [sp], #32
        ret
