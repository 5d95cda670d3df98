/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_PANIC_NOTIFIER_H__
#define _PKVM_EMU_LINUX_PANIC_NOTIFIER_H__

#include <linux/notifier.h>
extern struct atomic_notifier_head panic_notifier_list;

#endif /* _PKVM_EMU_LINUX_PANIC_NOTIFIER_H__ */
