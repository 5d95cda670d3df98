/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_IOPOLL_H_
#define _PKVM_EMU_LINUX_IOPOLL_H_

#include <linux/delay.h>
#include <linux/io.h>
#include <linux/errno.h>
/* Polls about every delay_us until cond or timeout_us (0: for ever) has passed; 0 or -ETIMEDOUT. */
#define read_poll_timeout_atomic(op, val, cond, delay_us, timeout_us, before, args...) ({ \
	u64 left_ = (timeout_us); bool timed_out_ = false; \
	if (before) udelay(delay_us); \
	while ((val) = op(args), !(cond)) { \
		if ((timeout_us) && left_ < (delay_us) + 1ULL) { timed_out_ = true; break; } \
		udelay(delay_us); \
		left_ -= (delay_us) + 1ULL; \
	} \
	timed_out_ ? -ETIMEDOUT : 0; })
#define readl_poll_timeout_atomic(addr, val, cond, delay_us, timeout_us) \
	read_poll_timeout_atomic(readl, val, cond, delay_us, timeout_us, false, addr)
#define readl_poll_timeout(addr, val, cond, delay_us, timeout_us) \
	readl_poll_timeout_atomic(addr, val, cond, delay_us, timeout_us)
#define readl_relaxed_poll_timeout(addr, val, cond, delay_us, timeout_us) \
	read_poll_timeout_atomic(readl_relaxed, val, cond, delay_us, timeout_us, false, addr)

#endif /* _PKVM_EMU_LINUX_IOPOLL_H_ */
