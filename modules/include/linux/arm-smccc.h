/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_ARM_SMCCC_H_
#define _PKVM_EMU_LINUX_ARM_SMCCC_H_

#include <linux/const.h>
#ifndef __ASSEMBLY__
#include <linux/types.h>
#endif

/* SMC Calling Convention: function identifiers */
#define ARM_SMCCC_STD_CALL		_AC(0, U)
#define ARM_SMCCC_FAST_CALL		_AC(1, U)
#define ARM_SMCCC_TYPE_SHIFT		31
#define ARM_SMCCC_SMC_32		0
#define ARM_SMCCC_SMC_64		1
#define ARM_SMCCC_CALL_CONV_SHIFT	30
#define ARM_SMCCC_OWNER_SHIFT		24
#define ARM_SMCCC_OWNER_MASK		0x3f
#define ARM_SMCCC_FUNC_MASK		0xffff
#define ARM_SMCCC_1_3_SVE_HINT		0x10000

#define ARM_SMCCC_OWNER_ARCH		0
#define ARM_SMCCC_OWNER_CPU		1
#define ARM_SMCCC_OWNER_SIP		2
#define ARM_SMCCC_OWNER_OEM		3
#define ARM_SMCCC_OWNER_STANDARD	4
#define ARM_SMCCC_OWNER_STANDARD_HYP	5
#define ARM_SMCCC_OWNER_VENDOR_HYP	6
#define ARM_SMCCC_OWNER_TRUSTED_APP	48
#define ARM_SMCCC_OWNER_TRUSTED_OS	50

#define ARM_SMCCC_CALL_VAL(type, convention, owner, func) \
	(((type) << ARM_SMCCC_TYPE_SHIFT) | ((convention) << ARM_SMCCC_CALL_CONV_SHIFT) | \
	 (((owner) & ARM_SMCCC_OWNER_MASK) << ARM_SMCCC_OWNER_SHIFT) | ((func) & ARM_SMCCC_FUNC_MASK))
#define ARM_SMCCC_IS_FAST_CALL(id)	((id) & (ARM_SMCCC_FAST_CALL << ARM_SMCCC_TYPE_SHIFT))
#define ARM_SMCCC_IS_64(id)		((id) & (ARM_SMCCC_SMC_64 << ARM_SMCCC_CALL_CONV_SHIFT))
#define ARM_SMCCC_FUNC_NUM(id)		((id) & ARM_SMCCC_FUNC_MASK)
#define ARM_SMCCC_OWNER_NUM(id)		(((id) >> ARM_SMCCC_OWNER_SHIFT) & ARM_SMCCC_OWNER_MASK)

#define ARM_SMCCC_VERSION_FUNC_ID	0x80000000
#define ARM_SMCCC_ARCH_FEATURES_FUNC_ID	0x80000001

#define SMCCC_RET_SUCCESS		0
#define SMCCC_RET_NOT_SUPPORTED		-1
#define SMCCC_RET_NOT_REQUIRED		-2
#define SMCCC_RET_INVALID_PARAMETER	-3

#ifndef __ASSEMBLY__

struct arm_smccc_res {
	unsigned long a0;
	unsigned long a1;
	unsigned long a2;
	unsigned long a3;
};
_Static_assert(sizeof(struct arm_smccc_res) == 32, "arm_smccc_res");

struct arm_smccc_1_2_regs {
	unsigned long a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15, a16, a17;
};
_Static_assert(sizeof(struct arm_smccc_1_2_regs) == 144, "arm_smccc_1_2_regs");

/*
 * arm_smccc_1_1_hvc(id, arguments ..., res), arm_smccc_1_1_smc(id, arguments ..., res)
 *
 * Up to seven arguments go to x1 to x7, those left out are 0. The answer x0 to x3 is stored at res unless that
 * is NULL. x4 to x17 do not survive.
 */
#define _PKVM_EMU_CONDUIT(name, instruction) \
static __always_inline void name(u32 id, unsigned long a1, unsigned long a2, unsigned long a3, unsigned long a4, \
				 unsigned long a5, unsigned long a6, unsigned long a7, struct arm_smccc_res *res) \
{ \
	register unsigned long x0 __asm__("x0") = id; \
	register unsigned long x1 __asm__("x1") = a1; \
	register unsigned long x2 __asm__("x2") = a2; \
	register unsigned long x3 __asm__("x3") = a3; \
	register unsigned long x4 __asm__("x4") = a4; \
	register unsigned long x5 __asm__("x5") = a5; \
	register unsigned long x6 __asm__("x6") = a6; \
	register unsigned long x7 __asm__("x7") = a7; \
	__asm__ volatile(instruction \
			 : "+r"(x0), "+r"(x1), "+r"(x2), "+r"(x3), "+r"(x4), "+r"(x5), "+r"(x6), "+r"(x7) : \
			 : "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15", "x16", "x17", "memory"); \
	if (res) \
		*res = (struct arm_smccc_res){ x0, x1, x2, x3 }; \
} \
static __always_inline void name##_regs(const struct arm_smccc_1_2_regs *args, struct arm_smccc_1_2_regs *res) \
{ \
	__asm__ volatile( \
		"ldp x0, x1, [%0]\n\tldp x2, x3, [%0, #16]\n\tldp x4, x5, [%0, #32]\n\tldp x6, x7, [%0, #48]\n\t" \
		"ldp x8, x9, [%0, #64]\n\tldp x10, x11, [%0, #80]\n\tldp x12, x13, [%0, #96]\n\t" \
		"ldp x14, x15, [%0, #112]\n\tldp x16, x17, [%0, #128]\n\t" \
		instruction "\n\t" \
		"stp x0, x1, [%1]\n\tstp x2, x3, [%1, #16]\n\tstp x4, x5, [%1, #32]\n\tstp x6, x7, [%1, #48]\n\t" \
		"stp x8, x9, [%1, #64]\n\tstp x10, x11, [%1, #80]\n\tstp x12, x13, [%1, #96]\n\t" \
		"stp x14, x15, [%1, #112]\n\tstp x16, x17, [%1, #128]" \
		: : "r"(args), "r"(res) \
		: "x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", \
		  "x15", "x16", "x17", "memory"); \
}
_PKVM_EMU_CONDUIT(_pkvm_emu_hvc, "hvc #0")
/* smc #0, as a number: assemblers take the name only when told that there is an EL3 */
_PKVM_EMU_CONDUIT(_pkvm_emu_smc, ".inst 0xd4000003")

#define _pkvm_emu_ul(a)	((unsigned long)(a))
#define _pkvm_emu_call0(f, id, res)	f(id, 0, 0, 0, 0, 0, 0, 0, res)
#define _pkvm_emu_call1(f, id, a, res)	f(id, _pkvm_emu_ul(a), 0, 0, 0, 0, 0, 0, res)
#define _pkvm_emu_call2(f, id, a, b, res) f(id, _pkvm_emu_ul(a), _pkvm_emu_ul(b), 0, 0, 0, 0, 0, res)
#define _pkvm_emu_call3(f, id, a, b, c, res) \
	f(id, _pkvm_emu_ul(a), _pkvm_emu_ul(b), _pkvm_emu_ul(c), 0, 0, 0, 0, res)
#define _pkvm_emu_call4(f, id, a, b, c, d, res) \
	f(id, _pkvm_emu_ul(a), _pkvm_emu_ul(b), _pkvm_emu_ul(c), _pkvm_emu_ul(d), 0, 0, 0, res)
#define _pkvm_emu_call5(f, id, a, b, c, d, e, res) \
	f(id, _pkvm_emu_ul(a), _pkvm_emu_ul(b), _pkvm_emu_ul(c), _pkvm_emu_ul(d), _pkvm_emu_ul(e), 0, 0, res)
#define _pkvm_emu_call6(f, id, a, b, c, d, e, g, res) \
	f(id, _pkvm_emu_ul(a), _pkvm_emu_ul(b), _pkvm_emu_ul(c), _pkvm_emu_ul(d), _pkvm_emu_ul(e), \
	  _pkvm_emu_ul(g), 0, res)
#define _pkvm_emu_call7(f, id, a, b, c, d, e, g, h, res) \
	f(id, _pkvm_emu_ul(a), _pkvm_emu_ul(b), _pkvm_emu_ul(c), _pkvm_emu_ul(d), _pkvm_emu_ul(e), \
	  _pkvm_emu_ul(g), _pkvm_emu_ul(h), res)
#define _pkvm_emu_call_n(_1, _2, _3, _4, _5, _6, _7, _8, _9, n, ...)	_pkvm_emu_call##n
#define _pkvm_emu_call_for(...)	_pkvm_emu_call_n(__VA_ARGS__, 7, 6, 5, 4, 3, 2, 1, 0, too_few_arguments)

#define arm_smccc_1_1_hvc(...)	_pkvm_emu_call_for(__VA_ARGS__)(_pkvm_emu_hvc, __VA_ARGS__)
#define arm_smccc_1_1_smc(...)	_pkvm_emu_call_for(__VA_ARGS__)(_pkvm_emu_smc, __VA_ARGS__)
#define arm_smccc_1_1_invoke(...)	({ arm_smccc_1_1_smc(__VA_ARGS__); 1; })

#define arm_smccc_smc(a0, a1, a2, a3, a4, a5, a6, a7, res) \
	_pkvm_emu_call7(_pkvm_emu_smc, a0, a1, a2, a3, a4, a5, a6, a7, res)
#define arm_smccc_hvc(a0, a1, a2, a3, a4, a5, a6, a7, res) \
	_pkvm_emu_call7(_pkvm_emu_hvc, a0, a1, a2, a3, a4, a5, a6, a7, res)
#define arm_smccc_1_2_smc(args, res)	_pkvm_emu_smc_regs(args, res)
#define arm_smccc_1_2_hvc(args, res)	_pkvm_emu_hvc_regs(args, res)

#endif /* __ASSEMBLY__ */

#endif /* _PKVM_EMU_LINUX_ARM_SMCCC_H_ */
