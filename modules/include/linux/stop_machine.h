/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_STOP_MACHINE_H__
#define _PKVM_EMU_LINUX_STOP_MACHINE_H__

#include <linux/cpumask.h>
int stop_machine(int (*fn)(void *data), void *data, const struct cpumask *cpus);

#endif /* _PKVM_EMU_LINUX_STOP_MACHINE_H__ */
