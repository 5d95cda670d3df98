/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_JIFFIES_H_
#define _PKVM_EMU_LINUX_JIFFIES_H_

#include <linux/types.h>
#define HZ	CONFIG_HZ
extern unsigned long volatile jiffies;
unsigned long msecs_to_jiffies(unsigned int ms);

#endif /* _PKVM_EMU_LINUX_JIFFIES_H_ */
