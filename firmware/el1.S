// EL1 firmware: the kernel's exception vectors, and the stubs through which Python makes the host do things.
//
// The vectors hand every exception to Python, which looks at ESR_EL1 and ELR_EL1, changes what it has to and returns; the ERET is here.

.macro VECTOR name
        .balign 128
\name:
        hvc     #0x8000
        eret
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
        .balign 8
return_to_python:
        hvc     #0xffff
        b       return_to_python
        .balign 4096
image_end:
