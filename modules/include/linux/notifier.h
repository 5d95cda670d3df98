/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_NOTIFIER_H__
#define _PKVM_EMU_LINUX_NOTIFIER_H__

#include <linux/mutex.h>
#include <linux/rwsem.h>
#include <linux/spinlock.h>

struct notifier_block;
typedef int (*notifier_fn_t)(struct notifier_block *nb, unsigned long action, void *data);
struct notifier_block {
	notifier_fn_t notifier_call;
	struct notifier_block *next;
	int priority;
};
struct atomic_notifier_head { spinlock_t lock; struct notifier_block *head; };
struct blocking_notifier_head { struct rw_semaphore rwsem; struct notifier_block *head; };
struct raw_notifier_head { struct notifier_block *head; };
#define NOTIFY_DONE		0x0000
#define NOTIFY_OK		0x0001
#define NOTIFY_STOP_MASK	0x8000
#define NOTIFY_BAD		(NOTIFY_STOP_MASK | 0x0002)
#define NOTIFY_STOP		(NOTIFY_OK | NOTIFY_STOP_MASK)
#define ATOMIC_NOTIFIER_HEAD(name)	struct atomic_notifier_head name = { }
#define BLOCKING_NOTIFIER_HEAD(name) \
	struct blocking_notifier_head name = { .rwsem = __RWSEM_INITIALIZER((name).rwsem) }
#define RAW_NOTIFIER_HEAD(name)		struct raw_notifier_head name = { }
#define _PKVM_EMU_NOTIFIER(kind) \
int kind##_notifier_chain_register(struct kind##_notifier_head *head, struct notifier_block *nb); \
int kind##_notifier_chain_unregister(struct kind##_notifier_head *head, struct notifier_block *nb); \
int kind##_notifier_call_chain(struct kind##_notifier_head *head, unsigned long action, void *data);
_PKVM_EMU_NOTIFIER(atomic)
_PKVM_EMU_NOTIFIER(blocking)
_PKVM_EMU_NOTIFIER(raw)
static inline int notifier_from_errno(int err) { return err ? NOTIFY_STOP_MASK | (NOTIFY_OK - err) : NOTIFY_OK; }
static inline int notifier_to_errno(int ret)
{
	ret &= ~NOTIFY_STOP_MASK;
	return ret > NOTIFY_OK ? NOTIFY_OK - ret : 0;
}

#endif /* _PKVM_EMU_LINUX_NOTIFIER_H__ */
