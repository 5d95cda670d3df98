// EL2 code around protected guests, and on its last page what the emulated guest itself runs at EL1.
//
// A vCPU has one page at EL2: x0..x30 at +8*n and what follows below. While a guest runs, VBAR_EL2 is guest_vectors; the page's
// address is on the EL2 stack. Python (op_guest_load, op_guest_exit) switches the system registers in between.

.set CTX_HANDLE, 0x120
.set CTX_TABLE, 0x128
.set CTX_COUNT, 0x130
.set CTX_RESULTS, 0x138
.set CTX_IN, 0x600
.set CTX_RES, 0x700

// Check the kCFI type id in front of the function in x9 against the word in w16, and call it.
.macro CALL_CHECKED id
        ldr     w16, \id
        cbz     w16, 9001f
        ldur    w17, [x9, #-4]
        cmp     w16, w17
        b.eq    9001f
        brk     #0x8229
9001:
        blr     x9
.endm

.macro VECTOR_UNUSED
        .balign 128
        b       guest_unexpected
.endm

        .balign 2048
guest_vectors:
        VECTOR_UNUSED           // current EL: the host's vectors are back before anything here can fault
        VECTOR_UNUSED
        VECTOR_UNUSED
        VECTOR_UNUSED
        VECTOR_UNUSED
        VECTOR_UNUSED
        VECTOR_UNUSED
        VECTOR_UNUSED
        .balign 128             // lower EL, AArch64: synchronous
vector_guest_sync:
        stp     x0, x1, [sp, #-16]!
        b       guest_exit
        VECTOR_UNUSED
        VECTOR_UNUSED
        VECTOR_UNUSED
        VECTOR_UNUSED
        VECTOR_UNUSED
        VECTOR_UNUSED
        VECTOR_UNUSED
        .balign 128
guest_unexpected:
        hvc     #0x8000
        b       guest_unexpected

kcfi_guest_enter:       .word 0
// guest_enter(vCPU page): run the guest until it has to be dealt with by the host; the exit code.
guest_enter:
        hint    #34                     // BTI C: the hypercall dispatch comes here by BLR
        stp     x29, x30, [sp, #-112]!
        mov     x29, sp
        stp     x19, x20, [sp, #16]
        stp     x21, x22, [sp, #32]
        stp     x23, x24, [sp, #48]
        stp     x25, x26, [sp, #64]
        stp     x27, x28, [sp, #80]
        str     x0, [sp, #96]
guest_resume:
        ldr     x0, [sp, #96]
        bl      op_guest_load
        ldr     x30, [sp, #96]
        ldp     x0, x1, [x30]
        ldp     x2, x3, [x30, #16]
        ldp     x4, x5, [x30, #32]
        ldp     x6, x7, [x30, #48]
        ldp     x8, x9, [x30, #64]
        ldp     x10, x11, [x30, #80]
        ldp     x12, x13, [x30, #96]
        ldp     x14, x15, [x30, #112]
        ldp     x16, x17, [x30, #128]
        ldp     x18, x19, [x30, #144]
        ldp     x20, x21, [x30, #160]
        ldp     x22, x23, [x30, #176]
        ldp     x24, x25, [x30, #192]
        ldp     x26, x27, [x30, #208]
        ldp     x28, x29, [x30, #224]
        ldr     x30, [x30, #240]
        eret

guest_exit:
        ldr     x0, [sp, #112]
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
        mov     x19, x0
        bl      op_guest_exit           // x0: 0 back to the host with x1, 1 ask the modules about an SMC, 2 on with the guest
        cmp     x0, #2
        b.eq    guest_resume
        cbnz    x0, guest_smc
        mov     x0, x1
guest_leave:
        ldp     x19, x20, [sp, #16]
        ldp     x21, x22, [sp, #32]
        ldp     x23, x24, [sp, #48]
        ldp     x25, x26, [sp, #64]
        ldp     x27, x28, [sp, #80]
        ldp     x29, x30, [sp], #112
        ret

// The modules' handlers are asked in the order of registration until one returns true: handler(in, res, handle).
guest_smc:
        mov     x20, xzr
1:      ldr     x1, [x19, x20, lsl #3]
        add     x2, x19, #CTX_IN
        str     x1, [x2, x20, lsl #3]
        add     x20, x20, #1
        cmp     x20, #18
        b.ne    1b
        mov     x20, xzr
        ldr     x21, [x19, #CTX_TABLE]
2:      ldr     x22, [x19, #CTX_COUNT]
        cmp     x20, x22
        b.hs    4f
        ldr     x9, [x21, x20, lsl #3]
        add     x0, x19, #CTX_IN
        add     x1, x19, #CTX_RES
        ldr     w2, [x19, #CTX_HANDLE]
guest_smc_dispatch:
        CALL_CHECKED kcfi_guest_smc
        add     x20, x20, #1
        tbz     w0, #0, 2b
        mov     x20, xzr
        ldr     x22, [x19, #CTX_RESULTS]
3:      add     x2, x19, #CTX_RES
        ldr     x1, [x2, x20, lsl #3]
        str     x1, [x19, x20, lsl #3]
        add     x20, x20, #1
        cmp     x20, x22
        b.ne    3b
        b       guest_resume
4:      mov     x0, #-1                 // nobody: NOT_SUPPORTED for the guest, and the host hears of it
        str     x0, [x19]
        mov     x0, x19
        bl      op_guest_refused
        b       guest_leave

op_guest_load:
        hvc     #0x8000
        ret
op_guest_exit:
        hvc     #0x8000
        ret
// op_guest_refused(vCPU page): no module wants the SMC of the guest; the exit code for the host.
op_guest_refused:
        hvc     #0x8000
        ret
kcfi_guest_smc:         .word 0
        .balign 4096

// The guest: EL1 with its MMU off. Each piece ends in a WFI, which the hypervisor traps.
guest_code:
guest_does_smc:         smc     #0
                        wfi
guest_does_hvc:         hvc     #0
                        wfi
guest_load8:            ldrb    w0, [x0]
                        wfi
guest_load16:           ldrh    w0, [x0]
                        wfi
guest_load32:           ldr     w0, [x0]
                        wfi
guest_load64:           ldr     x0, [x0]
                        wfi
guest_store8:           strb    w1, [x0]
                        wfi
guest_store16:          strh    w1, [x0]
                        wfi
guest_store32:          str     w1, [x0]
                        wfi
guest_store64:          str     x1, [x0]
                        wfi
        .balign 4096
image_end:
