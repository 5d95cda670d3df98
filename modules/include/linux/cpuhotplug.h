/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_CPUHOTPLUG_H__
#define _PKVM_EMU_LINUX_CPUHOTPLUG_H__

#include <linux/types.h>

/* Only the dynamic states: modules have no others (include/linux/cpuhotplug.h). */
enum cpuhp_state { CPUHP_BP_PREPARE_DYN = 65, CPUHP_AP_ONLINE_DYN = 193 };
int __cpuhp_setup_state(enum cpuhp_state state, const char *name, bool invoke, int (*startup)(unsigned int cpu),
			int (*teardown)(unsigned int cpu), bool multi_instance);
void __cpuhp_remove_state(enum cpuhp_state state, bool invoke);
static inline int cpuhp_setup_state(enum cpuhp_state state, const char *name, int (*startup)(unsigned int cpu),
				    int (*teardown)(unsigned int cpu))
{
	return __cpuhp_setup_state(state, name, true, startup, teardown, false);
}
static inline int cpuhp_setup_state_nocalls(enum cpuhp_state state, const char *name, int (*startup)(unsigned int cpu),
					    int (*teardown)(unsigned int cpu))
{
	return __cpuhp_setup_state(state, name, false, startup, teardown, false);
}
static inline void cpuhp_remove_state(enum cpuhp_state state) { __cpuhp_remove_state(state, true); }

#endif /* _PKVM_EMU_LINUX_CPUHOTPLUG_H__ */
