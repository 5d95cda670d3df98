/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_BITMAP_H_
#define _PKVM_EMU_LINUX_BITMAP_H_

#include <linux/bitops.h>
#include <linux/string.h>

static inline void bitmap_zero(unsigned long *words, unsigned int bits)
{
	memset(words, 0, BITS_TO_LONGS(bits) * sizeof(long));
}

static inline bool bitmap_empty(const unsigned long *words, unsigned int bits)
{
	return find_first_bit(words, bits) == bits;
}

static inline void bitmap_set(unsigned long *words, unsigned int start, unsigned int count)
{
	while (count--)
		__set_bit(start++, words);
}

static inline void bitmap_clear(unsigned long *words, unsigned int start, unsigned int count)
{
	while (count--)
		__clear_bit(start++, words);
}

#endif /* _PKVM_EMU_LINUX_BITMAP_H_ */
