/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_SCHED_H_
#define _PKVM_EMU_LINUX_SCHED_H_

#include <linux/types.h>
struct task_struct;

#endif /* _PKVM_EMU_LINUX_SCHED_H_ */
