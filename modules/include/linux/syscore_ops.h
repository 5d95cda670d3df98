/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_SYSCORE_OPS_H__
#define _PKVM_EMU_LINUX_SYSCORE_OPS_H__

#include <linux/list.h>

struct syscore_ops {
	struct list_head node;
	int (*suspend)(void);
	void (*resume)(void);
	void (*shutdown)(void);
};
void register_syscore_ops(struct syscore_ops *ops);
void unregister_syscore_ops(struct syscore_ops *ops);

#endif /* _PKVM_EMU_LINUX_SYSCORE_OPS_H__ */
