/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_BITS_H_
#define _PKVM_EMU_LINUX_BITS_H_

#include <linux/const.h>

#define BITS_PER_BYTE		8
#define BITS_PER_LONG		64
#define BITS_PER_LONG_LONG	64
#define BITS_PER_TYPE(type)	(sizeof(type) * BITS_PER_BYTE)
#define BITS_TO_LONGS(n)	(((n) + BITS_PER_LONG - 1) / BITS_PER_LONG)

#define BIT(n)			(UL(1) << (n))
#define BIT_ULL(n)		(ULL(1) << (n))
#define BIT_MASK(n)		(UL(1) << ((n) % BITS_PER_LONG))
#define BIT_WORD(n)		((n) / BITS_PER_LONG)
/* ones in bits high..low */
#define GENMASK(high, low)	((~UL(0) << (low)) & (~UL(0) >> (BITS_PER_LONG - 1 - (high))))
#define GENMASK_ULL(high, low)	((~ULL(0) << (low)) & (~ULL(0) >> (BITS_PER_LONG_LONG - 1 - (high))))

#endif /* _PKVM_EMU_LINUX_BITS_H_ */
