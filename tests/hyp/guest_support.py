"""A module that guards guests and their devices, and what its calls answer."""

from __future__ import annotations

from pkvm_emu.system import System

KEEPER = r"""
static const struct pkvm_module_ops *o;
static u64 asked[3], last_handle, resets[4], reset_result;
#if PKVM_EMU_ANDROID == 16
typedef struct arm_smccc_1_2_regs result_t;
#else
typedef struct arm_smccc_res result_t;
#endif
#if PKVM_EMU_ANDROID > 14
static bool first(struct arm_smccc_1_2_regs *in, result_t *res, pkvm_handle_t handle)
{
	asked[0]++;
	last_handle = handle;
	if (in->a0 == 0x82000bad)
		*(volatile u64 *)8 = 1;
	if (in->a0 != 0x82000001)
		return false;
	res->a0 = 0;
	res->a1 = in->a1 + in->a2;
	res->a2 = handle;
	res->a3 = in->a17;
#if PKVM_EMU_ANDROID == 16
	for (int i = 4; i < 18; i++)
		((u64 *)res)[i] = 0x100 + i;
#endif
	return true;
}
static bool second(struct arm_smccc_1_2_regs *in, result_t *res, pkvm_handle_t handle)
{
	asked[1]++;
	res->a0 = 22;
	res->a1 = res->a2 = res->a3 = 0;
	return in->a0 == 0x82000002;
}
#endif
static int reset(void *cookie, bool host_to_guest)
{
	resets[host_to_guest]++;
	resets[2] = (u64)cookie;
	return reset_result;
}
int hyp_init(const struct pkvm_module_ops *ops) { o = ops; return 0; }
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;

	x[0] = 0;
	switch (x[1]) {
#if PKVM_EMU_ANDROID == 15
	case 0: x[1] = o->register_guest_smc_handler(x[2] ? second : first, x[3]); break;
	case 5: x[1] = o->guest_stage2_pa(x[2], x[3], (phys_addr_t *)&asked[2]); x[2] = asked[2]; break;
#endif
#if PKVM_EMU_ANDROID == 16
	case 0: x[1] = o->register_guest_smc_handler(x[2] ? second : first); break;
	case 3: x[1] = o->device_register_reset(x[2], (void *)x[3], reset); break;
#endif
	case 1: x[1] = asked[0]; x[2] = asked[1]; x[3] = last_handle; break;
	case 2: x[1] = resets[0]; x[2] = resets[1]; x[3] = resets[2]; break;
	case 4: reset_result = x[2]; break;
#if PKVM_EMU_ANDROID == 14
	case 6: x[1] = o->host_donate_hyp(x[2], 1); break;
#else
	case 6: x[1] = o->host_donate_hyp(x[2], 1, false); break;
#endif
	}
}
"""
REGISTER, ASKED, RESETS, ON_RESET, RESET_RESULT, GUEST_PA, DONATE_HYP = range(7)
FIRST, SECOND = 0, 1
PAGE, IPA = 0x4800_0000, 0x8000_0000
NOT_SUPPORTED = (1 << 64) - 1
DEVICE = (0x0B00_0000, 0x2000)
EPERM, ENOENT, E2BIG, EBUSY, ENODEV, EINVAL, ERANGE = -1, -2, -7, -16, -19, -22, -34


def ask(system: System, *args: int) -> int:
    value = system.call("hyp_call", *args).x1 & 0xFFFF_FFFF
    return value - (1 << 32) if value >> 31 else value


def asked(system: System) -> tuple[int, int]:
    result = system.call("hyp_call", ASKED)
    return result.x1, result.x2
