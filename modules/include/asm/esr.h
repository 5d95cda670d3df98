/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_ESR_H_
#define _PKVM_EMU_ASM_ESR_H_

#include <linux/bits.h>

#define ESR_ELx_EC_UNKNOWN	0x00
#define ESR_ELx_EC_WFx		0x01
#define ESR_ELx_EC_CP15_32	0x03
#define ESR_ELx_EC_CP15_64	0x04
#define ESR_ELx_EC_FP_ASIMD	0x07
#define ESR_ELx_EC_PAC		0x09
#define ESR_ELx_EC_BTI		0x0d
#define ESR_ELx_EC_ILL		0x0e
#define ESR_ELx_EC_SVC32	0x11
#define ESR_ELx_EC_HVC32	0x12
#define ESR_ELx_EC_SMC32	0x13
#define ESR_ELx_EC_SVC64	0x15
#define ESR_ELx_EC_HVC64	0x16
#define ESR_ELx_EC_SMC64	0x17
#define ESR_ELx_EC_SYS64	0x18
#define ESR_ELx_EC_SVE		0x19
#define ESR_ELx_EC_ERET		0x1a
#define ESR_ELx_EC_FPAC		0x1c
#define ESR_ELx_EC_SME		0x1d
#define ESR_ELx_EC_IABT_LOW	0x20
#define ESR_ELx_EC_IABT_CUR	0x21
#define ESR_ELx_EC_PC_ALIGN	0x22
#define ESR_ELx_EC_DABT_LOW	0x24
#define ESR_ELx_EC_DABT_CUR	0x25
#define ESR_ELx_EC_SP_ALIGN	0x26
#define ESR_ELx_EC_SERROR	0x2f
#define ESR_ELx_EC_BREAKPT_LOW	0x30
#define ESR_ELx_EC_SOFTSTP_LOW	0x32
#define ESR_ELx_EC_WATCHPT_LOW	0x34
#define ESR_ELx_EC_BRK64	0x3c
#define ESR_ELx_EC_MAX		0x3f

#define ESR_ELx_EC_SHIFT	26
#define ESR_ELx_EC_MASK		(UL(0x3f) << ESR_ELx_EC_SHIFT)
#define ESR_ELx_EC(esr)		(((esr) & ESR_ELx_EC_MASK) >> ESR_ELx_EC_SHIFT)
#define ESR_ELx_IL		(UL(1) << 25)
#define ESR_ELx_ISS_MASK	((UL(1) << 25) - 1)
#define ESR_ELx_ISS(esr)	((esr) & ESR_ELx_ISS_MASK)

/* aborts */
#define ESR_ELx_WNR_SHIFT	6
#define ESR_ELx_WNR		(UL(1) << ESR_ELx_WNR_SHIFT)
#define ESR_ELx_S1PTW		(UL(1) << 7)
#define ESR_ELx_CM		(UL(1) << 8)
#define ESR_ELx_EA		(UL(1) << 9)
#define ESR_ELx_FnV		(UL(1) << 10)
#define ESR_ELx_AR		(UL(1) << 14)
#define ESR_ELx_SF		(UL(1) << 15)
#define ESR_ELx_SRT_SHIFT	16
#define ESR_ELx_SRT_MASK	(UL(0x1f) << ESR_ELx_SRT_SHIFT)
#define ESR_ELx_SSE		(UL(1) << 21)
#define ESR_ELx_SAS_SHIFT	22
#define ESR_ELx_SAS		(UL(3) << ESR_ELx_SAS_SHIFT)
#define ESR_ELx_ISV		(UL(1) << 24)
#define ESR_ELx_FSC		(0x3f)
#define ESR_ELx_FSC_TYPE	(0x3c)
#define ESR_ELx_FSC_LEVEL	(0x03)
#define ESR_ELx_FSC_EXTABT	(0x10)
#define ESR_ELx_FSC_ACCESS	(0x08)
#define ESR_ELx_FSC_FAULT	(0x04)
#define ESR_ELx_FSC_PERM	(0x0c)

/* trapped system register accesses */
#define ESR_ELx_SYS64_ISS_DIR_MASK	0x1
#define ESR_ELx_SYS64_ISS_DIR_READ	0x1
#define ESR_ELx_SYS64_ISS_DIR_WRITE	0x0
#define ESR_ELx_SYS64_ISS_RT_SHIFT	5
#define ESR_ELx_SYS64_ISS_RT_MASK	(UL(0x1f) << ESR_ELx_SYS64_ISS_RT_SHIFT)
#define ESR_ELx_SYS64_ISS_RT(esr)	(((esr) & ESR_ELx_SYS64_ISS_RT_MASK) >> ESR_ELx_SYS64_ISS_RT_SHIFT)

#define ESR_ELx_BRK64_ISS_COMMENT_MASK	0xffff

#endif /* _PKVM_EMU_ASM_ESR_H_ */
