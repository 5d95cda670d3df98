/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_PREEMPT_H_
#define _PKVM_EMU_LINUX_PREEMPT_H_

#include <linux/compiler.h>
/* One CPU runs module code to its end; these only keep the compiler from moving accesses. */
#define preempt_disable()	barrier()
#define preempt_enable()	barrier()
#define in_interrupt()		0
#define in_atomic()		0

#endif /* _PKVM_EMU_LINUX_PREEMPT_H_ */
