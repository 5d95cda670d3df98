/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_INTERRUPT_H_
#define _PKVM_EMU_LINUX_INTERRUPT_H_

#include <linux/atomic.h>
#include <linux/types.h>
struct device;
typedef enum { IRQ_NONE, IRQ_HANDLED, IRQ_WAKE_THREAD } irqreturn_t;
typedef irqreturn_t (*irq_handler_t)(int irq, void *data);
#define IRQF_SHARED	0x00000080
#define IRQF_ONESHOT	0x00002000
int devm_request_threaded_irq(struct device *dev, unsigned int irq, irq_handler_t handler, irq_handler_t thread,
			      unsigned long flags, const char *name, void *data);
static inline int devm_request_irq(struct device *dev, unsigned int irq, irq_handler_t handler, unsigned long flags,
				   const char *name, void *data)
{
	return devm_request_threaded_irq(dev, irq, handler, NULL, flags, name, data);
}

/* (include/linux/interrupt.h) */
struct tasklet_struct {
	struct tasklet_struct *next;
	unsigned long state;
	atomic_t count;
	bool use_callback;
	union {
		void (*func)(unsigned long data);
		void (*callback)(struct tasklet_struct *t);
	};
	unsigned long data;
};
void tasklet_setup(struct tasklet_struct *t, void (*callback)(struct tasklet_struct *));
void tasklet_kill(struct tasklet_struct *t);
void __tasklet_schedule(struct tasklet_struct *t);
static inline void tasklet_schedule(struct tasklet_struct *t)
{
	if (!(__atomic_fetch_or(&t->state, 1, __ATOMIC_SEQ_CST) & 1))
		__tasklet_schedule(t);
}
static inline void tasklet_disable_nosync(struct tasklet_struct *t) { atomic_inc(&t->count); }
static inline void tasklet_enable(struct tasklet_struct *t) { atomic_dec(&t->count); }

#endif /* _PKVM_EMU_LINUX_INTERRUPT_H_ */
