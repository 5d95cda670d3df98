/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_PAGE_H_
#define _PKVM_EMU_ASM_PAGE_H_

#include <linux/const.h>
#define PAGE_SHIFT	12
#define PAGE_SIZE	(_AC(1, UL) << PAGE_SHIFT)
#define PAGE_MASK	(~(PAGE_SIZE - 1))
#define PMD_SHIFT	21
#define PMD_SIZE	(_AC(1, UL) << PMD_SHIFT)
#define PMD_MASK	(~(PMD_SIZE - 1))
#define PUD_SHIFT	30
#define PUD_SIZE	(_AC(1, UL) << PUD_SHIFT)
#ifndef __ASSEMBLY__
#include <asm/pgtable-types.h>
#include <asm/memory.h>
#endif

#endif /* _PKVM_EMU_ASM_PAGE_H_ */
