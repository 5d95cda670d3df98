/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_XARRAY_H__
#define _PKVM_EMU_LINUX_XARRAY_H__

#include <linux/err.h>
#include <linux/gfp.h>
#include <linux/spinlock.h>
#include <linux/types.h>

struct xarray { spinlock_t xa_lock; gfp_t xa_flags; void *xa_head; };
struct xa_limit { u32 max, min; };
#define XA_LIMIT(min_, max_)	(struct xa_limit){ .min = (min_), .max = (max_) }
#define xa_limit_32b		XA_LIMIT(0, UINT_MAX)
#define DEFINE_XARRAY(name)	struct xarray name = { }
#define xa_init(xa)		(*(xa) = (struct xarray){ })
#define xa_empty(xa)		((xa)->xa_head == NULL)
void *xa_load(struct xarray *xa, unsigned long index);
void *xa_store(struct xarray *xa, unsigned long index, void *entry, gfp_t gfp);
void *xa_erase(struct xarray *xa, unsigned long index);
void *xa_find(struct xarray *xa, unsigned long *index, unsigned long max, unsigned int filter);
void *xa_find_after(struct xarray *xa, unsigned long *index, unsigned long max, unsigned int filter);
void xa_destroy(struct xarray *xa);
int __xa_alloc(struct xarray *xa, u32 *id, void *entry, struct xa_limit limit, gfp_t gfp);
static inline int xa_alloc(struct xarray *xa, u32 *id, void *entry, struct xa_limit limit, gfp_t gfp)
{
	return __xa_alloc(xa, id, entry, limit, gfp);
}
#define xa_for_each(xa, index, entry) \
	for ((index) = 0, (entry) = xa_find(xa, &(index), ULONG_MAX, 8); (entry); \
	     (entry) = xa_find_after(xa, &(index), ULONG_MAX, 8))

#endif /* _PKVM_EMU_LINUX_XARRAY_H__ */
