/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_CMA_H_
#define _PKVM_EMU_LINUX_CMA_H_

#include <linux/types.h>
struct cma;
struct page;
struct page *cma_alloc(struct cma *area, unsigned long count, unsigned int align, bool no_warn);
bool cma_release(struct cma *area, const struct page *pages, unsigned long count);
phys_addr_t cma_get_base(const struct cma *area);
unsigned long cma_get_size(const struct cma *area);
const char *cma_get_name(const struct cma *area);
int cma_for_each_area(int (*function)(struct cma *area, void *data), void *data);

#endif /* _PKVM_EMU_LINUX_CMA_H_ */
