// EL1 firmware: the kernel's exception vectors, and the stubs through which Python makes the host do things.
//
// The vectors hand every exception to Python, which looks at ESR_EL1 and ELR_EL1, changes what it has to and returns; the ERET is here.

.macro VECTOR name
        .balign 128
\name:
        hvc     #0x8000
        eret
.endm

// All of x0..x17 through an HVC or SMC: x0 points at eighteen words, which are loaded before it and stored after it.
.macro ALL_REGISTERS name, insn
\name:
        stp     x0, x30, [sp, #-16]!
        mov     x30, x0
        ldp     x2, x3, [x30, #16]
        ldp     x4, x5, [x30, #32]
        ldp     x6, x7, [x30, #48]
        ldp     x8, x9, [x30, #64]
        ldp     x10, x11, [x30, #80]
        ldp     x12, x13, [x30, #96]
        ldp     x14, x15, [x30, #112]
        ldp     x16, x17, [x30, #128]
        ldp     x0, x1, [x30]
        \insn    #0
        ldr     x30, [sp]
        stp     x0, x1, [x30]
        stp     x2, x3, [x30, #16]
        stp     x4, x5, [x30, #32]
        stp     x6, x7, [x30, #48]
        stp     x8, x9, [x30, #64]
        stp     x10, x11, [x30, #80]
        stp     x12, x13, [x30, #96]
        stp     x14, x15, [x30, #112]
        stp     x16, x17, [x30, #128]
        ldp     x0, x30, [sp], #16
        ret
.endm

        .balign 2048
el1_vectors:
        VECTOR vector_el1t_sync
        VECTOR vector_el1t_irq
        VECTOR vector_el1t_fiq
        VECTOR vector_el1t_serror
        VECTOR vector_el1h_sync
        VECTOR vector_el1h_irq
        VECTOR vector_el1h_fiq
        VECTOR vector_el1h_serror
        VECTOR vector_el0_sync
        VECTOR vector_el0_irq
        VECTOR vector_el0_fiq
        VECTOR vector_el0_serror
        VECTOR vector_el0_32_sync
        VECTOR vector_el0_32_irq
        VECTOR vector_el0_32_fiq
        VECTOR vector_el0_32_serror
        .balign 128

// host_hvc(x0..x7), host_smc(x0..x17)
host_hvc:
        hvc     #0
        ret
host_smc:
        smc     #0
        ret
        ALL_REGISTERS host_hvc_all, hvc
        ALL_REGISTERS host_smc_all, smc

// Loads, stores and an instruction fetch as the host makes them, each at a place of its own, so that an abort is told apart.
host_load8:     ldrb    w0, [x0]
                ret
host_load16:    ldrh    w0, [x0]
                ret
host_load32:    ldr     w0, [x0]
                ret
host_load64:    ldr     x0, [x0]
                ret
host_store8:    strb    w1, [x0]
                ret
host_store16:   strh    w1, [x0]
                ret
host_store32:   str     w1, [x0]
                ret
host_store64:   str     x1, [x0]
                ret
host_execute:   br      x0
// Where the vectors send a host access that faulted: x0 says so.
host_access_fault:
        mov     x0, #-14
        ret

// host_user(x0, x1 for EL0, EL0 PC, EL0 return address): go to EL0. The vectors come back to one of the two labels below.
host_user:
        stp     x29, x30, [sp, #-16]!
        msr     ELR_EL1, x2
        mov     x2, #0x3c0
        msr     SPSR_EL1, x2
        mov     x30, x3
        eret
host_user_fault:
        mov     x0, #-14
host_user_return:
        ldp     x29, x30, [sp], #16
        ret

// What runs at EL0, from a user mapping of this page.
user_load8:     ldrb    w0, [x0]
                svc     #0
user_load16:    ldrh    w0, [x0]
                svc     #0
user_load32:    ldr     w0, [x0]
                svc     #0
user_load64:    ldr     x0, [x0]
                svc     #0
user_store8:    strb    w1, [x0]
                svc     #0
user_store16:   strh    w1, [x0]
                svc     #0
user_store32:   str     w1, [x0]
                svc     #0
user_store64:   str     x1, [x0]
                svc     #0
user_done:      svc     #0
// Where a CPU that PSCI started comes to EL1: by physical address, with the MMU off, x0 as the starter gave it.
secondary_entry:
        hvc     #0x8000
        b       secondary_entry

        .balign 8
return_to_python:
        hvc     #0xffff
        b       return_to_python
        .balign 4096
image_end:
