/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_LOG2_H_
#define _PKVM_EMU_LINUX_LOG2_H_

#include <linux/bitops.h>
#define ilog2(n)		(__builtin_constant_p(n) ? ((n) < 2 ? 0 : 63 - __builtin_clzll(n)) : fls64(n) - 1)
static __always_inline bool is_power_of_2(unsigned long n) { return n && !(n & (n - 1)); }
static __always_inline unsigned long roundup_pow_of_two(unsigned long n) { return n <= 1 ? 1 : 1UL << fls64(n - 1); }
static __always_inline unsigned long rounddown_pow_of_two(unsigned long n) { return 1UL << (fls64(n) - 1); }
static __always_inline int order_base_2(unsigned long n) { return n <= 1 ? 0 : fls64(n - 1); }

#endif /* _PKVM_EMU_LINUX_LOG2_H_ */
