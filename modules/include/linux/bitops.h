/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_BITOPS_H_
#define _PKVM_EMU_LINUX_BITOPS_H_

#include <linux/bits.h>
#include <linux/types.h>
#include <linux/compiler.h>

static __always_inline int fls64(u64 x) { return x ? 64 - __builtin_clzll(x) : 0; }
static __always_inline int fls(unsigned int x) { return x ? 32 - __builtin_clz(x) : 0; }
static __always_inline unsigned long __fls(unsigned long x) { return 63 - (unsigned long)__builtin_clzl(x); }
static __always_inline unsigned long __ffs(unsigned long x) { return (unsigned long)__builtin_ctzl(x); }
static __always_inline int ffs(int x) { return __builtin_ffs(x); }
static __always_inline unsigned long ffz(unsigned long x) { return __ffs(~x); }
static __always_inline int fls_long(unsigned long x) { return fls64(x); }

static __always_inline unsigned int hweight64(u64 x)
{
	unsigned int n = 0;

	for (; x; x &= x - 1)
		n++;
	return n;
}
#define hweight32(x)	hweight64((u32)(x))
#define hweight_long(x)	hweight64(x)

static __always_inline u32 rol32(u32 x, unsigned int n) { return (x << (n & 31)) | (x >> (-n & 31)); }
static __always_inline u32 ror32(u32 x, unsigned int n) { return (x >> (n & 31)) | (x << (-n & 31)); }

static __always_inline void __set_bit(unsigned long n, volatile unsigned long *words)
{
	words[BIT_WORD(n)] |= BIT_MASK(n);
}

static __always_inline void __clear_bit(unsigned long n, volatile unsigned long *words)
{
	words[BIT_WORD(n)] &= ~BIT_MASK(n);
}

static __always_inline bool test_bit(unsigned long n, const volatile unsigned long *words)
{
	return (words[BIT_WORD(n)] >> (n % BITS_PER_LONG)) & 1;
}

static __always_inline void set_bit(unsigned long n, volatile unsigned long *words)
{
	__atomic_fetch_or(&words[BIT_WORD(n)], BIT_MASK(n), __ATOMIC_RELAXED);
}

static __always_inline void clear_bit(unsigned long n, volatile unsigned long *words)
{
	__atomic_fetch_and(&words[BIT_WORD(n)], ~BIT_MASK(n), __ATOMIC_RELAXED);
}

static __always_inline bool test_and_set_bit(unsigned long n, volatile unsigned long *words)
{
	return __atomic_fetch_or(&words[BIT_WORD(n)], BIT_MASK(n), __ATOMIC_SEQ_CST) & BIT_MASK(n);
}

static __always_inline bool test_and_clear_bit(unsigned long n, volatile unsigned long *words)
{
	return __atomic_fetch_and(&words[BIT_WORD(n)], ~BIT_MASK(n), __ATOMIC_SEQ_CST) & BIT_MASK(n);
}

static __always_inline bool __test_and_set_bit(unsigned long n, volatile unsigned long *words)
{
	bool was = test_bit(n, words);

	__set_bit(n, words);
	return was;
}

static inline unsigned long find_next_bit(const unsigned long *words, unsigned long size, unsigned long from)
{
	for (; from < size; from++)
		if (test_bit(from, words))
			return from;
	return size;
}

static inline unsigned long find_next_zero_bit(const unsigned long *words, unsigned long size, unsigned long from)
{
	for (; from < size; from++)
		if (!test_bit(from, words))
			return from;
	return size;
}

#define find_first_bit(words, size)		find_next_bit(words, size, 0)
#define find_first_zero_bit(words, size)	find_next_zero_bit(words, size, 0)
#define for_each_set_bit(n, words, size) \
	for ((n) = find_first_bit(words, size); (n) < (size); (n) = find_next_bit(words, size, (n) + 1))

#endif /* _PKVM_EMU_LINUX_BITOPS_H_ */
