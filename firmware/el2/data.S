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
