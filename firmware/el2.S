// EL2 firmware: the hypervisor's vectors, its host entry and exit path, and the handler chains.
//
// What can be guest code is guest code, so that a debugger can step through it and a snapshot can be taken in it: the
// dispatch of dynamic hypercalls, the chains of SMC and permission-fault handlers and the notifiers run here, through tables
// in EL2 memory that the ops fill in. Python runs behind the `op_*` stubs only.
//
// Conventions: x29 in the vectors' exit path and x19 in the handlers point at the host context of this CPU, which TPIDR_EL2 holds:
// x0..x30 at +8*n. The pointer-authentication keys of the host and of the hypervisor follow at +HOST_KEYS and +HYP_KEYS.

.set HOST_KEYS, 0xd00
.set HYP_KEYS, 0xd80
.set EC_SHIFT, 26
.set EC_HVC64, 0x16
.set EC_SMC64, 0x17
.set EC_IABT_LOW, 0x20
.set EC_DABT_LOW, 0x24

// A stub that calls Python. The immediate says "service"; which one is decided by the address.
.macro SERVICE
        hvc     #0x8000
        ret
.endm

.macro VECTOR_PANIC
        .balign 128
        b       panic_from_el2
.endm

.macro VECTOR_INVALID
        .balign 128
        b       panic_from_host
.endm

// Check the kCFI type id in front of the function in x9 against the one in w16, and call it.
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

        .balign 2048
hyp_vectors:
        VECTOR_PANIC            // current EL, SP_EL0
        VECTOR_PANIC
        VECTOR_PANIC
        VECTOR_PANIC
        VECTOR_PANIC            // current EL, SP_EL2
        VECTOR_PANIC
        VECTOR_PANIC
        VECTOR_PANIC
        .balign 128             // lower EL, AArch64: synchronous
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

handle_host_smc:
        stp     x29, x30, [sp, #-48]!
        mov     x29, sp
        stp     x19, x20, [sp, #16]
        str     x21, [sp, #32]
        mov     x19, x0
        bl      op_host_smc             // x0: 0 answered by the hypervisor, 1 ask the modules
        cbz     x0, 4f
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

// Panics touch no stack: it may be what is broken.
panic_from_el2:
        hvc     #0x8000
        b       panic_common
panic_from_host:
        hvc     #0x8000
panic_common:
        // Python has put the CPU on a good stack and the host context in x0.
        ldr     x9, panic_notifier_fn
        cbz     x9, panic_finish
        CALL_CHECKED kcfi_notifier
panic_finish:
        hvc     #0x8000
        b       panic_finish

// What Python finds broken while it serves an op or a trap ends here, as a BUG() or a bad access in the hypervisor's own
// code does: the registers are those of the caller, x9 holds the address at fault.
hyp_bug:
        brk     #0x800
hyp_fault_load:
        ldrb    w9, [x9]
        b       hyp_bug
hyp_fault_store:
        strb    wzr, [x9]
        b       hyp_bug
fw_write_hfgwtr:
        msr     HFGWTR_EL2, x0          // undefined on a CPU without FEAT_FGT
        ret

// fw_call_module: x9 is the function, w16 its kCFI type id (0: not checked), x0.. the arguments.
fw_call_module:
        stp     x29, x30, [sp, #-16]!
        mov     x29, sp
        cbz     w16, 1f
        ldur    w17, [x9, #-4]
        cmp     w16, w17
        b.eq    1f
        brk     #0x8229
1:      blr     x9
        ldp     x29, x30, [sp], #16
        ret

// Ops that are guest code: they call the module's serial driver, or touch memory with EL2's own permissions, so that a
// bad pointer faults as it does on a device.
fw_putc:
        ldr     x9, serial_putc_fn
        cbz     x9, 1f
        stp     x29, x30, [sp, #-16]!
        mov     x29, sp
        and     w0, w0, #0xff
        CALL_CHECKED kcfi_serial_putc
        ldp     x29, x30, [sp], #16
1:      ret

// fw_puts(string): the string, then \n and \r
fw_puts:
        ldr     x9, serial_putc_fn
        cbz     x9, 9f
        stp     x29, x30, [sp, #-32]!
        mov     x29, sp
        str     x19, [sp, #16]
        mov     x19, x0
1:      ldrb    w0, [x19], #1
        cbz     w0, 2f
        bl      fw_putc
        b       1b
2:      bl      fw_newline
        ldr     x19, [sp, #16]
        ldp     x29, x30, [sp], #32
9:      ret

// fw_putx64(value): 0x, sixteen hexadecimal digits, \n and \r
fw_putx64:
        ldr     x9, serial_putc_fn
        cbz     x9, 9f
        stp     x29, x30, [sp, #-32]!
        mov     x29, sp
        stp     x19, x20, [sp, #16]
        mov     x19, x0
        mov     w0, #0x30
        bl      fw_putc
        mov     w0, #0x78
        bl      fw_putc
        mov     x20, #60
1:      lsr     x0, x19, x20
        and     x0, x0, #0xf
        cmp     x0, #10
        b.lo    2f
        add     x0, x0, #0x27
2:      add     x0, x0, #0x30
        bl      fw_putc
        subs    x20, x20, #4
        b.ge    1b
        bl      fw_newline
        ldp     x19, x20, [sp, #16]
        ldp     x29, x30, [sp], #32
9:      ret

fw_newline:
        stp     x29, x30, [sp, #-16]!
        mov     x29, sp
        mov     w0, #0xa
        bl      fw_putc
        mov     w0, #0xd
        bl      fw_putc
        ldp     x29, x30, [sp], #16
        ret

fw_memset:
        cbz     x2, 2f
        mov     x9, x0
        add     x2, x0, x2
1:      strb    w1, [x9], #1
        cmp     x9, x2
        b.ne    1b
2:      ret

fw_memcpy:
        cbz     x2, 2f
        mov     x9, x0
        add     x2, x0, x2
1:      ldrb    w10, [x1], #1
        strb    w10, [x9], #1
        cmp     x9, x2
        b.ne    1b
2:      ret

op_enter:               SERVICE
op_leave:               SERVICE
op_host_hcall:          SERVICE
op_host_hcall_result:   SERVICE
op_host_smc:            SERVICE
op_host_mem_abort:      SERVICE
op_perm_result:         SERVICE
op_inject_abort:        SERVICE
op_unhandled_trap:      SERVICE

        .balign 8
return_to_python:
        hvc     #0xffff
        b       return_to_python
        .balign 4096
text_end:

// Data page. Code reaches it PC-relative.
config_hcall_base:              .quad 0
config_hcall_hint_mask:         .quad 0
config_hcall_presets_x0:        .word 0
config_perm_stops_at_zero:      .word 0
config_pauth:                   .word 0
config_tracing:                 .word 0
kcfi_hcall:                     .word 0
kcfi_init:                      .word 0
kcfi_smc_handler:               .word 0
kcfi_trap_handler:              .word 0
kcfi_perm_handler:              .word 0
kcfi_notifier:                  .word 0
kcfi_psci:                      .word 0
kcfi_unmask_serror:             .word 0
kcfi_mask_serror:               .word 0
kcfi_serial_putc:               .word 0
        .balign 8
unmask_serror_fn:               .quad 0
mask_serror_fn:                 .quad 0
default_trap_fn:                .quad 0
abort_notifier_fn:              .quad 0
panic_notifier_fn:              .quad 0
psci_notifier_fn:               .quad 0
serial_putc_fn:                 .quad 0
heap_chunks:                    .quad 0, 0      // list head of the heap
hcall_count:                    .quad 0
smc_count:                      .quad 0
perm_count:                     .quad 0
guest_smc_count:                .quad 0
smc_table:                      .fill 16, 8, 0
perm_table:                     .fill 16, 8, 0
guest_smc_table:                .fill 16, 8, 0
hcall_table:                    .fill 128, 8, 0
        .balign 4096
image_end:
