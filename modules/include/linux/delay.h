/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_DELAY_H_
#define _PKVM_EMU_LINUX_DELAY_H_

#include <linux/types.h>
#include <linux/math.h>

void __udelay(unsigned long usecs);
void __const_udelay(unsigned long scaled);
/* 2^32 / 10^6 per microsecond, the unit of __const_udelay() */
#define udelay(usecs) \
	(__builtin_constant_p(usecs) ? __const_udelay((usecs) * 0x10c7ul) : __udelay(usecs))
#define mdelay(msecs)	udelay((msecs) * 1000ul)
#define ndelay(nsecs)	udelay(DIV_ROUND_UP(nsecs, 1000))
void msleep(unsigned int msecs);
#ifdef PKVM_EMU_USLEEP_RANGE_STATE
void usleep_range_state(unsigned long min, unsigned long max, unsigned int state);
#define usleep_range(min, max)	usleep_range_state(min, max, 2 /* TASK_UNINTERRUPTIBLE */)
#else
void usleep_range(unsigned long min, unsigned long max);
#endif
#define ssleep(secs)	msleep((secs) * 1000)
#define fsleep(usecs)	usleep_range(usecs, 2 * (usecs))

#endif /* _PKVM_EMU_LINUX_DELAY_H_ */
