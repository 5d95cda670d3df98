/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_BSEARCH_H_
#define _PKVM_EMU_LINUX_BSEARCH_H_

/* Binary search in num elements of size bytes, sorted so that cmp(key, element) falls. */
#include <linux/compiler.h>
#include <linux/types.h>

static __always_inline void *__inline_bsearch(const void *key, const void *base, size_t num, size_t size,
					      cmp_func_t cmp)
{
	size_t first = 0, end = num;

	while (first < end) {
		size_t middle = first + (end - first) / 2;
		const char *element = (const char *)base + middle * size;
		int order = cmp(key, element);

		if (!order)
			return (void *)element;
		if (order > 0)
			first = middle + 1;
		else
			end = middle;
	}
	return (void *)0;
}

void *bsearch(const void *key, const void *base, size_t num, size_t size, cmp_func_t cmp);

#endif /* _PKVM_EMU_LINUX_BSEARCH_H_ */
