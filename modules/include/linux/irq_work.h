/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_IRQ_WORK_H__
#define _PKVM_EMU_LINUX_IRQ_WORK_H__

#include <linux/types.h>

struct irq_work {
	void *next;
	u32 flags;
	u16 src, dst;
	void (*func)(struct irq_work *work);
	void *irqwait;
};
#define DEFINE_IRQ_WORK(name, f)	struct irq_work name = { .func = (f) }
static inline void init_irq_work(struct irq_work *work, void (*func)(struct irq_work *))
{
	*work = (struct irq_work){ .func = func };
}
bool irq_work_queue(struct irq_work *work);
void irq_work_sync(struct irq_work *work);

#endif /* _PKVM_EMU_LINUX_IRQ_WORK_H__ */
