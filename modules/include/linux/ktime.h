/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_KTIME_H_
#define _PKVM_EMU_LINUX_KTIME_H_

#include <linux/time64.h>
#include <linux/types.h>
typedef s64 ktime_t;
ktime_t ktime_get(void);
ktime_t ktime_get_with_offset(int which);
static inline ktime_t ns_to_ktime(u64 ns) { return (ktime_t)ns; }
static inline ktime_t ms_to_ktime(u64 ms) { return (ktime_t)(ms * NSEC_PER_MSEC); }
static inline s64 ktime_to_ns(ktime_t t) { return t; }
static inline s64 ktime_to_us(ktime_t t) { return t / NSEC_PER_USEC; }
static inline s64 ktime_to_ms(ktime_t t) { return t / NSEC_PER_MSEC; }
static inline ktime_t ktime_sub(ktime_t a, ktime_t b) { return a - b; }
static inline ktime_t ktime_add_us(ktime_t t, u64 us) { return t + (s64)us * NSEC_PER_USEC; }
static inline int ktime_after(ktime_t a, ktime_t b) { return a > b; }
static inline u64 ktime_get_ns(void) { return (u64)ktime_to_ns(ktime_get()); }

#endif /* _PKVM_EMU_LINUX_KTIME_H_ */
