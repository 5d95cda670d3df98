/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_PGTABLE_PROT_H_
#define _PKVM_EMU_ASM_PGTABLE_PROT_H_

/* Stage-1 descriptor bits of the kernel's own mappings, and MAIR indices. */
#include <asm/pgtable-types.h>
#define PTE_TYPE_PAGE		(_AC(3, UL) << 0)
#define PTE_SHARED		(_AC(3, UL) << 8)
#define PTE_AF			(_AC(1, UL) << 10)
#define PTE_DBM			(_AC(1, UL) << 51)
#define PTE_PXN			(_AC(1, UL) << 53)
#define PTE_UXN			(_AC(1, UL) << 54)
#define PTE_DIRTY		(_AC(1, UL) << 55)
#define PTE_ATTRINDX(index)	(_AC(index, UL) << 2)
#define MT_NORMAL		0
#define MT_NORMAL_TAGGED	1
#define MT_NORMAL_NC		2
#define MT_DEVICE_nGnRnE	3
#define MT_DEVICE_nGnRE		4
#define _PKVM_EMU_PROT(index)	(PTE_TYPE_PAGE | PTE_AF | PTE_SHARED | PTE_PXN | PTE_UXN | PTE_DIRTY | PTE_DBM | \
				 ((unsigned long)(index) << 2))
#define PROT_DEVICE_nGnRnE	_PKVM_EMU_PROT(MT_DEVICE_nGnRnE)
#define PROT_DEVICE_nGnRE	_PKVM_EMU_PROT(MT_DEVICE_nGnRE)
#define PROT_NORMAL_NC		_PKVM_EMU_PROT(MT_NORMAL_NC)
#define PROT_NORMAL		_PKVM_EMU_PROT(MT_NORMAL)

#endif /* _PKVM_EMU_ASM_PGTABLE_PROT_H_ */
