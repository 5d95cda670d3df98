// EL2 firmware: the hypervisor's vectors, its host entry and exit path, and the handler chains.
//
// What can be guest code is guest code, so that a debugger can step through it and a snapshot can be taken in it: the
// dispatch of dynamic hypercalls, the chains of SMC and permission-fault handlers and the notifiers run here, through tables
// in EL2 memory that the ops fill in. Python runs behind the `op_*` stubs only.
//
// This file holds what all parts use; the parts are included below, in the order in which they lie in the image.
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

.include "el2/vectors.S"
.include "el2/traps.S"
.include "el2/smc.S"
.include "el2/psci.S"
.include "el2/aborts.S"
.include "el2/panic.S"
.include "el2/ops.S"
.include "el2/services.S"
.include "el2/data.S"
