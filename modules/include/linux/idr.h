/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_IDR_H__
#define _PKVM_EMU_LINUX_IDR_H__

#include <linux/xarray.h>

struct idr { struct xarray idr_rt; unsigned int idr_base, idr_next; };
#define DEFINE_IDR(name)	struct idr name = { }
#define idr_init(idr)		(*(idr) = (struct idr){ })
int idr_alloc(struct idr *idr, void *entry, int start, int end, gfp_t gfp);
int idr_alloc_cyclic(struct idr *idr, void *entry, int start, int end, gfp_t gfp);
void *idr_find(const struct idr *idr, unsigned long id);
void *idr_remove(struct idr *idr, unsigned long id);
void *idr_replace(struct idr *idr, void *entry, unsigned long id);
int idr_for_each(const struct idr *idr, int (*fn)(int id, void *entry, void *data), void *data);
void idr_destroy(struct idr *idr);
struct ida { struct xarray xa; };
#define DEFINE_IDA(name)	struct ida name = { }
int ida_alloc_range(struct ida *ida, unsigned int min, unsigned int max, gfp_t gfp);
void ida_free(struct ida *ida, unsigned int id);
#define ida_alloc(ida, gfp)	ida_alloc_range(ida, 0, ~0u, gfp)
void ida_destroy(struct ida *ida);

#endif /* _PKVM_EMU_LINUX_IDR_H__ */
