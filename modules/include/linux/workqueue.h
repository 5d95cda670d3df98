/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_WORKQUEUE_H_
#define _PKVM_EMU_LINUX_WORKQUEUE_H_

#include <linux/list.h>
struct work_struct {
	atomic_long_t data;
	struct list_head entry;
	void (*func)(struct work_struct *work);
	u64 android_kabi_reserved[2];
};

#endif /* _PKVM_EMU_LINUX_WORKQUEUE_H_ */
