/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_CPUMASK_H_
#define _PKVM_EMU_LINUX_CPUMASK_H_

#include <linux/bitmap.h>
#include <linux/kernel.h>
struct cpumask { DECLARE_BITMAP(bits, CONFIG_NR_CPUS); };
typedef struct cpumask cpumask_t;
typedef struct cpumask cpumask_var_t[1];
extern struct cpumask __cpu_online_mask, __cpu_possible_mask, __cpu_present_mask;
extern unsigned int nr_cpu_ids;
#define cpu_online_mask		((const struct cpumask *)&__cpu_online_mask)
#define cpu_possible_mask	((const struct cpumask *)&__cpu_possible_mask)
#define cpumask_bits(mask)	((mask)->bits)
#define cpumask_test_cpu(cpu, mask)	test_bit(cpu, cpumask_bits(mask))
#define for_each_cpu(cpu, mask)		for_each_set_bit(cpu, cpumask_bits(mask), CONFIG_NR_CPUS)
#define for_each_online_cpu(cpu)	for_each_cpu(cpu, cpu_online_mask)
#define for_each_possible_cpu(cpu)	for_each_cpu(cpu, cpu_possible_mask)

#endif /* _PKVM_EMU_LINUX_CPUMASK_H_ */
