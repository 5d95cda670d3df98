// Stage-2 aborts of the host.

handle_host_mem_abort:
        stp     x29, x30, [sp, #-64]!
        mov     x29, sp
        stp     x19, x20, [sp, #16]
        stp     x21, x22, [sp, #32]
        str     x23, [sp, #48]
        mov     x19, x0
        bl      op_host_mem_abort       // x0: 0 retry, 1 ask the permission-fault handlers about address x1, 2 inject
        cbz     x0, 9f
        mov     x22, x1
        cmp     x0, #2
        b.eq    5f
        mov     x20, xzr
        mov     x23, #-1                // nobody: -EPERM
        adr     x21, perm_table
1:      ldr     x1, perm_count
        cmp     x20, x1
        b.hs    3f
        ldr     x9, [x21, x20, lsl #3]
        mov     x0, x19
        mrs     x1, ESR_EL2
        mov     x2, x22
perm_dispatch:
        CALL_CHECKED kcfi_perm_handler
        sxtw    x23, w0
        add     x20, x20, #1
        ldr     w1, config_perm_stops_at_zero
        cbz     w1, 2f
        cbnz    x23, 1b
        b       3f
2:      cbz     x23, 1b
3:      mov     x0, x23
        bl      op_perm_result          // x0: 0 retry, 2 inject
        cbz     x0, 9f
5:      ldr     x9, abort_notifier_fn
        cbz     x9, 6f
        mov     x0, x19
        CALL_CHECKED kcfi_notifier
6:      mov     x0, x19
        bl      op_inject_abort
9:      ldr     x23, [sp, #48]
        ldp     x21, x22, [sp, #32]
        ldp     x19, x20, [sp, #16]
        ldp     x29, x30, [sp], #64
        ret
