// Calls of module functions, and the ops that are guest code.

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
