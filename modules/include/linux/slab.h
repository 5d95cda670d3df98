/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_SLAB_H_
#define _PKVM_EMU_LINUX_SLAB_H_

#include <linux/gfp.h>
#include <linux/overflow.h>
#include <linux/types.h>

#ifdef PKVM_EMU_ALLOC_PROFILING_NAMES
void *__kmalloc_noprof(size_t size, gfp_t gfp);
void *krealloc_noprof(const void *p, size_t size, gfp_t gfp);
#define _pkvm_emu_kmalloc	__kmalloc_noprof
#define krealloc(p, size, gfp)	krealloc_noprof(p, size, gfp)
#else
void *__kmalloc(size_t size, gfp_t gfp);
void *krealloc(const void *p, size_t size, gfp_t gfp);
#define _pkvm_emu_kmalloc	__kmalloc
#endif

/* At least size bytes, aligned to 8 (to the size for powers of two); NULL when there are none. */
static __always_inline void *kmalloc(size_t size, gfp_t gfp) { return _pkvm_emu_kmalloc(size, gfp); }
static inline void *kzalloc(size_t size, gfp_t gfp) { return kmalloc(size, gfp | __GFP_ZERO); }

static inline void *kmalloc_array(size_t n, size_t size, gfp_t gfp)
{
	size_t bytes;

	return check_mul_overflow(n, size, &bytes) ? NULL : kmalloc(bytes, gfp);
}

static inline void *kcalloc(size_t n, size_t size, gfp_t gfp) { return kmalloc_array(n, size, gfp | __GFP_ZERO); }

void kfree(const void *p);
void kfree_sensitive(const void *p);
size_t ksize(const void *p);

#endif /* _PKVM_EMU_LINUX_SLAB_H_ */
