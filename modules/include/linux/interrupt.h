/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_INTERRUPT_H_
#define _PKVM_EMU_LINUX_INTERRUPT_H_

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

#endif /* _PKVM_EMU_LINUX_INTERRUPT_H_ */
