/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_VMALLOC_H_
#define _PKVM_EMU_LINUX_VMALLOC_H_

#include <linux/types.h>
#ifdef PKVM_EMU_ALLOC_PROFILING_NAMES
void *vmalloc_noprof(unsigned long size);
void *vzalloc_noprof(unsigned long size);
#define vmalloc(size)	vmalloc_noprof(size)
#define vzalloc(size)	vzalloc_noprof(size)
#else
void *vmalloc(unsigned long size);
void *vzalloc(unsigned long size);
#endif
void vfree(const void *addr);
struct page;
struct page *vmalloc_to_page(const void *addr);
unsigned long vmalloc_to_pfn(const void *addr);

#endif /* _PKVM_EMU_LINUX_VMALLOC_H_ */
