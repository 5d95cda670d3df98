/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_IRQFLAGS_H_
#define _PKVM_EMU_LINUX_IRQFLAGS_H_

#include <linux/types.h>
#define local_irq_save(flags) \
	do { __asm__ volatile("mrs %0, daif\n\tmsr daifset, #3" : "=r"(flags) : : "memory"); } while (0)
#define local_irq_restore(flags)	__asm__ volatile("msr daif, %0" : : "r"(flags) : "memory")
#define local_irq_disable()		__asm__ volatile("msr daifset, #3" : : : "memory")
#define local_irq_enable()		__asm__ volatile("msr daifclr, #3" : : : "memory")

#endif /* _PKVM_EMU_LINUX_IRQFLAGS_H_ */
