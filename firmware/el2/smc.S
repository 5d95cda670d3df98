// SMCs of the host: the chain of handlers, and what goes on to EL3.

handle_host_smc:
        stp     x29, x30, [sp, #-48]!
        mov     x29, sp
        stp     x19, x20, [sp, #16]
        str     x21, [sp, #32]
        mov     x19, x0
        bl      op_host_smc             // x0: 0 answered by the hypervisor, 1 ask the modules, 2 PSCI (see relay_psci)
        cbz     x0, 4f
        cmp     x0, #2
        b.eq    3f
        mov     x20, xzr
        adr     x21, smc_table
1:      ldr     x1, smc_count
        cmp     x20, x1
        b.hs    2f
        ldr     x9, [x21, x20, lsl #3]
        mov     x0, x19
smc_dispatch:
        CALL_CHECKED kcfi_smc_handler
        add     x20, x20, #1
        tbz     w0, #0, 1b
        b       4f
2:      mov     x0, x19
        bl      forward_smc
        b       4f
3:      mov     x0, x19
        bl      relay_psci
4:      mrs     x0, ELR_EL2
        add     x0, x0, #4
        msr     ELR_EL2, x0
        ldr     x21, [sp, #32]
        ldp     x19, x20, [sp, #16]
        ldp     x29, x30, [sp], #48
        ret

// forward_smc(host context): x0..x17 go to EL3 and come back.
forward_smc:
        stp     x29, x30, [sp, #-16]!
        mov     x29, sp
        mov     x18, x0
        ldp     x0, x1, [x18]
        ldp     x2, x3, [x18, #16]
        ldp     x4, x5, [x18, #32]
        ldp     x6, x7, [x18, #48]
        ldp     x8, x9, [x18, #64]
        ldp     x10, x11, [x18, #80]
        ldp     x12, x13, [x18, #96]
        ldp     x14, x15, [x18, #112]
        ldp     x16, x17, [x18, #128]
        smc     #0
        stp     x0, x1, [x18]
        stp     x2, x3, [x18, #16]
        stp     x4, x5, [x18, #32]
        stp     x6, x7, [x18, #48]
        stp     x8, x9, [x18, #64]
        stp     x10, x11, [x18, #80]
        stp     x12, x13, [x18, #96]
        stp     x14, x15, [x18, #112]
        stp     x16, x17, [x18, #128]
        ldp     x29, x30, [sp], #16
        ret
