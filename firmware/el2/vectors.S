// The vectors of EL2, and the way from the host into the hypervisor and back.

        .balign 2048
hyp_vectors:
        VECTOR_PANIC            // current EL, SP_EL0
        VECTOR_PANIC
        VECTOR_PANIC
        VECTOR_PANIC
        .balign 128             // current EL, SP_EL2: synchronous
vector_hyp_sync:
        b       panic_from_el2
        VECTOR_PANIC
        VECTOR_PANIC
        VECTOR_PANIC
        .balign 128             // lower EL, AArch64: synchronous
vector_host_sync:
        stp     x0, x1, [sp, #-16]!
        b       host_exit
        VECTOR_INVALID
        VECTOR_INVALID
        VECTOR_INVALID
        VECTOR_INVALID          // lower EL, AArch32
        VECTOR_INVALID
        VECTOR_INVALID
        VECTOR_INVALID
        .balign 128

// From the host: x0 and x1 are on the stack.
host_exit:
        mrs     x0, TPIDR_EL2
        stp     x2, x3, [x0, #16]
        stp     x4, x5, [x0, #32]
        stp     x6, x7, [x0, #48]
        stp     x8, x9, [x0, #64]
        stp     x10, x11, [x0, #80]
        stp     x12, x13, [x0, #96]
        stp     x14, x15, [x0, #112]
        stp     x16, x17, [x0, #128]
        stp     x18, x19, [x0, #144]
        stp     x20, x21, [x0, #160]
        stp     x22, x23, [x0, #176]
        stp     x24, x25, [x0, #192]
        stp     x26, x27, [x0, #208]
        stp     x28, x29, [x0, #224]
        str     x30, [x0, #240]
        ldp     x2, x3, [sp], #16
        stp     x2, x3, [x0]
        mov     x29, x0
        ldr     w1, config_pauth
        cbz     w1, 1f
        add     x1, x29, #HOST_KEYS
        bl      save_keys
        add     x1, x29, #HYP_KEYS
        bl      load_keys
1:      mov     x0, x29
        bl      handle_trap
host_return:
        ldr     w1, config_pauth
        cbz     w1, 2f
        add     x1, x29, #HOST_KEYS
        bl      load_keys
2:      ldp     x0, x1, [x29]
        ldp     x2, x3, [x29, #16]
        ldp     x4, x5, [x29, #32]
        ldp     x6, x7, [x29, #48]
        ldp     x8, x9, [x29, #64]
        ldp     x10, x11, [x29, #80]
        ldp     x12, x13, [x29, #96]
        ldp     x14, x15, [x29, #112]
        ldp     x16, x17, [x29, #128]
        ldp     x18, x19, [x29, #144]
        ldp     x20, x21, [x29, #160]
        ldp     x22, x23, [x29, #176]
        ldp     x24, x25, [x29, #192]
        ldp     x26, x27, [x29, #208]
        ldr     x30, [x29, #240]
        ldp     x28, x29, [x29, #224]
        eret

save_keys:
        mrs     x2, APIAKEYLO_EL1
        mrs     x3, APIAKEYHI_EL1
        stp     x2, x3, [x1], #16
        mrs     x2, APIBKEYLO_EL1
        mrs     x3, APIBKEYHI_EL1
        stp     x2, x3, [x1], #16
        mrs     x2, APDAKEYLO_EL1
        mrs     x3, APDAKEYHI_EL1
        stp     x2, x3, [x1], #16
        mrs     x2, APDBKEYLO_EL1
        mrs     x3, APDBKEYHI_EL1
        stp     x2, x3, [x1], #16
        mrs     x2, APGAKEYLO_EL1
        mrs     x3, APGAKEYHI_EL1
        stp     x2, x3, [x1]
        ret

load_keys:
        ldp     x2, x3, [x1], #16
        msr     APIAKEYLO_EL1, x2
        msr     APIAKEYHI_EL1, x3
        ldp     x2, x3, [x1], #16
        msr     APIBKEYLO_EL1, x2
        msr     APIBKEYHI_EL1, x3
        ldp     x2, x3, [x1], #16
        msr     APDAKEYLO_EL1, x2
        msr     APDAKEYHI_EL1, x3
        ldp     x2, x3, [x1], #16
        msr     APDBKEYLO_EL1, x2
        msr     APDBKEYHI_EL1, x3
        ldp     x2, x3, [x1]
        msr     APGAKEYLO_EL1, x2
        msr     APGAKEYHI_EL1, x3
        isb
        ret
