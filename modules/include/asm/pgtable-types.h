/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_PGTABLE_TYPES_H_
#define _PKVM_EMU_ASM_PGTABLE_TYPES_H_

#include <linux/types.h>
typedef u64 pteval_t;
typedef struct { pteval_t pte; } pte_t;
typedef struct { u64 pmd; } pmd_t;
typedef struct { u64 pgd; } pgd_t;
typedef struct { pteval_t pgprot; } pgprot_t;
#define pte_val(x)	((x).pte)
#define pgprot_val(x)	((x).pgprot)
#define __pte(x)	((pte_t){ (x) })
#define __pgprot(x)	((pgprot_t){ (x) })

#endif /* _PKVM_EMU_ASM_PGTABLE_TYPES_H_ */
