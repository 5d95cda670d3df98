/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_GFP_H_
#define _PKVM_EMU_LINUX_GFP_H_

#include <linux/types.h>

/* Only the bits that module code passes on by hand. */
#define ___GFP_DMA		0x01u
#define ___GFP_HIGHMEM		0x02u
#define ___GFP_DMA32		0x04u
#define ___GFP_MOVABLE		0x08u
#define ___GFP_RECLAIMABLE	0x10u
#define ___GFP_HIGH		0x20u
#define ___GFP_IO		0x40u
#define ___GFP_FS		0x80u
#define ___GFP_ZERO		0x100u
#define ___GFP_DIRECT_RECLAIM	0x400u
#define ___GFP_KSWAPD_RECLAIM	0x800u
#define ___GFP_NOWARN		0x2000u
#define ___GFP_NORETRY		0x10000u
#define ___GFP_COMP		0x40000u

#define __GFP_DMA		___GFP_DMA
#define __GFP_DMA32		___GFP_DMA32
#define __GFP_HIGH		___GFP_HIGH
#define __GFP_IO		___GFP_IO
#define __GFP_FS		___GFP_FS
#define __GFP_ZERO		___GFP_ZERO
#define __GFP_NOWARN		___GFP_NOWARN
#define __GFP_NORETRY		___GFP_NORETRY
#define __GFP_COMP		___GFP_COMP
#define __GFP_RECLAIM		(___GFP_DIRECT_RECLAIM | ___GFP_KSWAPD_RECLAIM)

#define GFP_KERNEL		(__GFP_RECLAIM | __GFP_IO | __GFP_FS)
#define GFP_KERNEL_ACCOUNT	GFP_KERNEL
#define GFP_ATOMIC		(__GFP_HIGH | ___GFP_KSWAPD_RECLAIM)
#define GFP_NOWAIT		(___GFP_KSWAPD_RECLAIM)
#define GFP_NOIO		(__GFP_RECLAIM)
#define GFP_DMA			__GFP_DMA
#define GFP_DMA32		__GFP_DMA32
#define GFP_USER		GFP_KERNEL

struct page;

/* 2^order pages of linear-map memory; 0 when there are none. */
#ifdef PKVM_EMU_ALLOC_PROFILING_NAMES
unsigned long get_free_pages_noprof(gfp_t gfp, unsigned int order);
unsigned long get_zeroed_page_noprof(gfp_t gfp);
void *alloc_pages_exact_noprof(size_t size, gfp_t gfp);
#define __get_free_pages(gfp, order)	get_free_pages_noprof(gfp, order)
#define get_zeroed_page(gfp)		get_zeroed_page_noprof(gfp)
#define alloc_pages_exact(size, gfp)	alloc_pages_exact_noprof(size, gfp)
#else
unsigned long __get_free_pages(gfp_t gfp, unsigned int order);
unsigned long get_zeroed_page(gfp_t gfp);
void *alloc_pages_exact(size_t size, gfp_t gfp);
#endif
#define __get_free_page(gfp)	__get_free_pages(gfp, 0)

void free_pages(unsigned long addr, unsigned int order);
void free_pages_exact(void *addr, size_t size);
#define free_page(addr)		free_pages(addr, 0)
#define __free_page_va(addr)	free_pages((unsigned long)(addr), 0)

#endif /* _PKVM_EMU_LINUX_GFP_H_ */
