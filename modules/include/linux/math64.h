/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_MATH64_H_
#define _PKVM_EMU_LINUX_MATH64_H_

#include <linux/types.h>
#include <linux/math.h>
static inline u64 div_u64(u64 n, u32 d) { return n / d; }
static inline u64 div64_u64(u64 n, u64 d) { return n / d; }
static inline s64 div_s64(s64 n, s32 d) { return n / d; }
#define do_div(n, d)	({ u32 rest_ = (n) % (u32)(d); (n) /= (u32)(d); rest_; })

#endif /* _PKVM_EMU_LINUX_MATH64_H_ */
