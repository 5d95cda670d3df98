// Where this firmware asks Python.

op_enter:               SERVICE
op_leave:               SERVICE
op_host_hcall:          SERVICE
op_host_hcall_result:   SERVICE
op_host_smc:            SERVICE
op_psci_result:         SERVICE
op_init_cpu:            SERVICE
op_cpu_entry:           SERVICE
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
