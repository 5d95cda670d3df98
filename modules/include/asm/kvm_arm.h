/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_KVM_ARM_H_
#define _PKVM_EMU_ASM_KVM_ARM_H_

#include <asm/esr.h>
#include <linux/bits.h>
#define HCR_VM		(UL(1) << 0)
#define HCR_SWIO	(UL(1) << 1)
#define HCR_PTW		(UL(1) << 2)
#define HCR_FMO		(UL(1) << 3)
#define HCR_IMO		(UL(1) << 4)
#define HCR_AMO		(UL(1) << 5)
#define HCR_VF		(UL(1) << 6)
#define HCR_VI		(UL(1) << 7)
#define HCR_VSE		(UL(1) << 8)
#define HCR_FB		(UL(1) << 9)
#define HCR_DC		(UL(1) << 12)
#define HCR_TWI		(UL(1) << 13)
#define HCR_TWE		(UL(1) << 14)
#define HCR_TSC		(UL(1) << 19)
#define HCR_TIDCP	(UL(1) << 20)
#define HCR_TACR	(UL(1) << 21)
#define HCR_TVM		(UL(1) << 26)
#define HCR_TGE		(UL(1) << 27)
#define HCR_TRVM	(UL(1) << 30)
#define HCR_RW		(UL(1) << 31)
#define HCR_CD		(UL(1) << 32)
#define HCR_ID		(UL(1) << 33)
#define HCR_E2H		(UL(1) << 34)
#define HCR_APK		(UL(1) << 40)
#define HCR_API		(UL(1) << 41)
#define HCR_FWB		(UL(1) << 46)
#define HCR_ATA		(UL(1) << 56)

#endif /* _PKVM_EMU_ASM_KVM_ARM_H_ */
