/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_SYSREG_H_
#define _PKVM_EMU_ASM_SYSREG_H_

#include <linux/bits.h>
#include <linux/stringify.h>
#include <linux/types.h>

/* The number of a system register as it stands in bits 20:5 of MRS and MSR. */
#define sys_reg(op0, op1, crn, crm, op2) \
	(((op0) << 19) | ((op1) << 16) | ((crn) << 12) | ((crm) << 8) | ((op2) << 5))

/* By name ... */
#define read_sysreg(name) ({ \
	u64 v_; \
	__asm__ volatile("mrs %0, " __stringify(name) : "=r"(v_)); \
	v_; })
#define write_sysreg(value, name) do { \
	u64 v_ = (u64)(value); \
	__asm__ volatile("msr " __stringify(name) ", %x0" : : "rZ"(v_)); \
} while (0)

/* ... and by number, for those the assembler does not know. */
#define read_sysreg_s(number) ({ \
	register u64 v_ __asm__("x9"); \
	__asm__ volatile(".inst 0xd5200009 | (%c1)" : "=r"(v_) : "i"(number)); \
	v_; })
#define write_sysreg_s(value, number) do { \
	register u64 v_ __asm__("x9") = (u64)(value); \
	__asm__ volatile(".inst 0xd5000009 | (%c1)" : : "r"(v_), "i"(number)); \
} while (0)

#define sysreg_clear_set(name, clear, set) do { \
	u64 old_ = read_sysreg(name), new_ = (old_ & ~(u64)(clear)) | (set); \
	if (old_ != new_) \
		write_sysreg(new_, name); \
} while (0)

#define SYS_MIDR_EL1		sys_reg(3, 0, 0, 0, 0)
#define SYS_MPIDR_EL1		sys_reg(3, 0, 0, 0, 5)
#define SYS_ID_AA64PFR0_EL1	sys_reg(3, 0, 0, 4, 0)
#define SYS_ID_AA64PFR1_EL1	sys_reg(3, 0, 0, 4, 1)
#define SYS_ID_AA64DFR0_EL1	sys_reg(3, 0, 0, 5, 0)
#define SYS_ID_AA64ISAR0_EL1	sys_reg(3, 0, 0, 6, 0)
#define SYS_ID_AA64ISAR1_EL1	sys_reg(3, 0, 0, 6, 1)
#define SYS_ID_AA64MMFR0_EL1	sys_reg(3, 0, 0, 7, 0)
#define SYS_ID_AA64MMFR1_EL1	sys_reg(3, 0, 0, 7, 1)
#define SYS_ID_AA64MMFR2_EL1	sys_reg(3, 0, 0, 7, 2)
#define SYS_SCTLR_EL1		sys_reg(3, 0, 1, 0, 0)
#define SYS_ACTLR_EL1		sys_reg(3, 0, 1, 0, 1)
#define SYS_TTBR0_EL1		sys_reg(3, 0, 2, 0, 0)
#define SYS_TTBR1_EL1		sys_reg(3, 0, 2, 0, 1)
#define SYS_TCR_EL1		sys_reg(3, 0, 2, 0, 2)
#define SYS_ESR_EL1		sys_reg(3, 0, 5, 2, 0)
#define SYS_FAR_EL1		sys_reg(3, 0, 6, 0, 0)
#define SYS_PAR_EL1		sys_reg(3, 0, 7, 4, 0)
#define SYS_MAIR_EL1		sys_reg(3, 0, 10, 2, 0)
#define SYS_VBAR_EL1		sys_reg(3, 0, 12, 0, 0)
#define SYS_CONTEXTIDR_EL1	sys_reg(3, 0, 13, 0, 1)
#define SYS_TPIDR_EL1		sys_reg(3, 0, 13, 0, 4)
#define SYS_HCR_EL2		sys_reg(3, 4, 1, 1, 0)
#define SYS_MDCR_EL2		sys_reg(3, 4, 1, 1, 1)
#define SYS_HFGRTR_EL2		sys_reg(3, 4, 1, 1, 4)
#define SYS_HFGWTR_EL2		sys_reg(3, 4, 1, 1, 5)
#define SYS_VTTBR_EL2		sys_reg(3, 4, 2, 1, 0)
#define SYS_VTCR_EL2		sys_reg(3, 4, 2, 1, 2)
#define SYS_SPSR_EL2		sys_reg(3, 4, 4, 0, 0)
#define SYS_ELR_EL2		sys_reg(3, 4, 4, 0, 1)
#define SYS_ESR_EL2		sys_reg(3, 4, 5, 2, 0)
#define SYS_FAR_EL2		sys_reg(3, 4, 6, 0, 0)
#define SYS_HPFAR_EL2		sys_reg(3, 4, 6, 0, 4)

#define ID_AA64MMFR0_EL1_PARANGE_MASK	GENMASK(3, 0)

#endif /* _PKVM_EMU_ASM_SYSREG_H_ */
