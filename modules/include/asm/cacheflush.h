/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_CACHEFLUSH_H_
#define _PKVM_EMU_ASM_CACHEFLUSH_H_

#include <linux/types.h>
void dcache_clean_inval_poc(unsigned long start, unsigned long end);
void caches_clean_inval_pou(unsigned long start, unsigned long end);

#endif /* _PKVM_EMU_ASM_CACHEFLUSH_H_ */
