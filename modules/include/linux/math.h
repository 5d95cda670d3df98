/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_MATH_H_
#define _PKVM_EMU_LINUX_MATH_H_

#include <linux/align.h>
#define round_up(x, y)		((((x) - 1) | ((typeof(x))((y) - 1))) + 1)
#define round_down(x, y)	((x) & ~((typeof(x))((y) - 1)))
#define roundup(x, y)		({ typeof(y) step_ = (y); (((x) + step_ - 1) / step_) * step_; })
#define rounddown(x, y)		({ typeof(x) value_ = (x); value_ - value_ % (y); })
#define DIV_ROUND_UP(n, d)	(((n) + (d) - 1) / (d))
#define DIV_ROUND_UP_ULL(n, d)	DIV_ROUND_UP((unsigned long long)(n), (d))
#define DIV_ROUND_CLOSEST(n, d)	(((n) + (d) / 2) / (d))
#define abs(x)			({ typeof(x) value_ = (x); value_ < 0 ? -value_ : value_; })
#define mult_frac(x, n, d)	({ typeof(x) q_ = (x) / (d), r_ = (x) % (d); q_ * (n) + r_ * (n) / (d); })

#endif /* _PKVM_EMU_LINUX_MATH_H_ */
