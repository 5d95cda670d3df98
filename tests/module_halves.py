"""The halves that a module for these tests is completed with."""

#: Loads the EL2 half and registers ``hyp_call``: enough of an EL1 half for most tests.
LOADER = """
int __kvm_nvhe_hyp_init(const struct pkvm_module_ops *ops);
void __kvm_nvhe_hyp_call(pkvm_handler_regs_t *regs);
static unsigned long token;
static int __init probe_init(void)
{
	int ret = pkvm_load_el2_module(__kvm_nvhe_hyp_init, &token);
	return ret ? ret : pkvm_register_el2_mod_call(__kvm_nvhe_hyp_call, token) < 0;
}
module_init(probe_init);
"""
#: An EL2 half that answers x1 + x2.
ADDER = """
int hyp_init(const struct pkvm_module_ops *ops) { return 0; }
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;
	x[0] = 0;
	x[1] += x[2];
}
"""
