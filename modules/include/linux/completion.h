/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_COMPLETION_H__
#define _PKVM_EMU_LINUX_COMPLETION_H__

#include <linux/list.h>
#include <linux/spinlock.h>

struct swait_queue_head { raw_spinlock_t lock; struct list_head task_list; };
struct completion { unsigned int done; struct swait_queue_head wait; };
#define DECLARE_COMPLETION(name)	struct completion name = { 0, { \
	.task_list = LIST_HEAD_INIT((name).wait.task_list) } }
#define DECLARE_COMPLETION_ONSTACK(name)	DECLARE_COMPLETION(name)
struct lock_class_key;
void __init_swait_queue_head(struct swait_queue_head *head, const char *name, struct lock_class_key *key);
static inline void init_completion(struct completion *c)
{
	c->done = 0;
	__init_swait_queue_head(&c->wait, "completion", NULL);
}
static inline void reinit_completion(struct completion *c) { c->done = 0; }
void complete(struct completion *c);
void complete_all(struct completion *c);
void wait_for_completion(struct completion *c);
int wait_for_completion_interruptible(struct completion *c);
unsigned long wait_for_completion_timeout(struct completion *c, unsigned long timeout);
bool try_wait_for_completion(struct completion *c);
bool completion_done(struct completion *c);

#endif /* _PKVM_EMU_LINUX_COMPLETION_H__ */
