/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_WAIT_H__
#define _PKVM_EMU_LINUX_WAIT_H__

#include <linux/list.h>
#include <linux/sched.h>
#include <linux/spinlock.h>

struct wait_queue_entry;
typedef int (*wait_queue_func_t)(struct wait_queue_entry *entry, unsigned int mode, int flags, void *key);
struct wait_queue_entry {
	unsigned int flags;
	void *private;
	wait_queue_func_t func;
	struct list_head entry;
};
typedef struct wait_queue_entry wait_queue_entry_t;
struct wait_queue_head { spinlock_t lock; struct list_head head; };
typedef struct wait_queue_head wait_queue_head_t;

struct lock_class_key;
void __init_waitqueue_head(struct wait_queue_head *head, const char *name, struct lock_class_key *key);
#define init_waitqueue_head(head)	__init_waitqueue_head(head, #head, NULL)
#define __WAIT_QUEUE_HEAD_INITIALIZER(name)	{ .head = LIST_HEAD_INIT((name).head) }
#define DECLARE_WAIT_QUEUE_HEAD(name)	struct wait_queue_head name = __WAIT_QUEUE_HEAD_INITIALIZER(name)
void init_wait_entry(struct wait_queue_entry *entry, int flags);
int autoremove_wake_function(struct wait_queue_entry *entry, unsigned int mode, int sync, void *key);
int woken_wake_function(struct wait_queue_entry *entry, unsigned int mode, int sync, void *key);
void add_wait_queue(struct wait_queue_head *head, struct wait_queue_entry *entry);
void remove_wait_queue(struct wait_queue_head *head, struct wait_queue_entry *entry);
void prepare_to_wait(struct wait_queue_head *head, struct wait_queue_entry *entry, int state);
long prepare_to_wait_event(struct wait_queue_head *head, struct wait_queue_entry *entry, int state);
void finish_wait(struct wait_queue_head *head, struct wait_queue_entry *entry);
long wait_woken(struct wait_queue_entry *entry, unsigned int mode, long timeout);
int __wake_up(struct wait_queue_head *head, unsigned int mode, int nr, void *key);
#define wake_up(head)			__wake_up(head, TASK_NORMAL, 1, NULL)
#define wake_up_nr(head, nr)		__wake_up(head, TASK_NORMAL, nr, NULL)
#define wake_up_all(head)		__wake_up(head, TASK_NORMAL, 0, NULL)
#define wake_up_interruptible(head)	__wake_up(head, TASK_INTERRUPTIBLE, 1, NULL)
static inline int waitqueue_active(struct wait_queue_head *head) { return !list_empty(&head->head); }
#define DEFINE_WAIT_FUNC(name, function) \
	struct wait_queue_entry name = { .private = current, .func = function, .entry = LIST_HEAD_INIT((name).entry) }
#define DEFINE_WAIT(name)	DEFINE_WAIT_FUNC(name, autoremove_wake_function)

/* Sleep until the condition holds; it is looked at before sleeping and after each wake-up. */
#define _PKVM_EMU_WAIT(head, condition, state, exclusive, sleep) \
({ \
	struct wait_queue_entry _entry; \
	long _interrupted = 0; \
	init_wait_entry(&_entry, exclusive); \
	for (;;) { \
		_interrupted = prepare_to_wait_event(&(head), &_entry, state); \
		if (condition) { \
			_interrupted = 0; \
			break; \
		} \
		if (_interrupted) \
			break; \
		sleep; \
	} \
	finish_wait(&(head), &_entry); \
	_interrupted; \
})
#define wait_event(head, condition) \
	do { if (!(condition)) _PKVM_EMU_WAIT(head, condition, TASK_UNINTERRUPTIBLE, 0, schedule()); } while (0)
#define wait_event_interruptible(head, condition) \
	((condition) ? 0 : (int)_PKVM_EMU_WAIT(head, condition, TASK_INTERRUPTIBLE, 0, schedule()))
#define wait_event_interruptible_exclusive(head, condition) \
	((condition) ? 0 : (int)_PKVM_EMU_WAIT(head, condition, TASK_INTERRUPTIBLE, 1, schedule()))
/* What is left of the jiffies (1 at least), or 0 where the time is over and the condition does not hold. */
#define _PKVM_EMU_WAIT_TIMEOUT(head, condition, timeout, state) \
({ \
	long _left = (timeout); \
	if (!(condition)) \
		_PKVM_EMU_WAIT(head, (condition) || !_left, state, 0, _left = schedule_timeout(_left)); \
	(condition) ? (_left ? _left : 1) : 0; \
})
#define wait_event_timeout(head, condition, timeout) \
	_PKVM_EMU_WAIT_TIMEOUT(head, condition, timeout, TASK_UNINTERRUPTIBLE)
#define wait_event_interruptible_timeout(head, condition, timeout) \
	_PKVM_EMU_WAIT_TIMEOUT(head, condition, timeout, TASK_INTERRUPTIBLE)

#endif /* _PKVM_EMU_LINUX_WAIT_H__ */
