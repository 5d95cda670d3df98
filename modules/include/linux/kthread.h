/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_KTHREAD_H__
#define _PKVM_EMU_LINUX_KTHREAD_H__

#include <linux/err.h>
#include <linux/sched.h>
#include <linux/spinlock.h>
#include <linux/timer.h>

struct task_struct *kthread_create_on_node(int (*function)(void *data), void *data, int node, const char *fmt, ...);
#define kthread_create(function, data, fmt, args...)	kthread_create_on_node(function, data, -1, fmt, ##args)
#define kthread_run(function, data, fmt, args...) \
({ \
	struct task_struct *_task = kthread_create(function, data, fmt, ##args); \
	if (!IS_ERR(_task)) \
		wake_up_process(_task); \
	_task; \
})
void kthread_bind(struct task_struct *task, unsigned int cpu);
int kthread_stop(struct task_struct *task);
bool kthread_should_stop(void);
bool kthread_should_park(void);
int kthread_park(struct task_struct *task);
void kthread_unpark(struct task_struct *task);
void kthread_parkme(void);
void *kthread_data(struct task_struct *task);

struct kthread_worker {
	unsigned int flags;
	raw_spinlock_t lock;
	struct list_head work_list, delayed_work_list;
	struct task_struct *task;
	struct kthread_work *current_work;
};
struct kthread_work {
	struct list_head node;
	void (*func)(struct kthread_work *work);
	struct kthread_worker *worker;
	int canceling;
};
struct kthread_delayed_work { struct kthread_work work; struct timer_list timer; };
void kthread_delayed_work_timer_fn(struct timer_list *timer);
#define kthread_init_work(w, f) \
	do { *(w) = (struct kthread_work){ .func = (f) }; INIT_LIST_HEAD(&(w)->node); } while (0)
#define kthread_init_delayed_work(w, f) \
	do { kthread_init_work(&(w)->work, f); timer_setup(&(w)->timer, kthread_delayed_work_timer_fn, 0); } while (0)
struct kthread_worker *kthread_create_worker(unsigned int flags, const char fmt[], ...);
bool kthread_queue_work(struct kthread_worker *worker, struct kthread_work *work);
bool kthread_queue_delayed_work(struct kthread_worker *worker, struct kthread_delayed_work *work, unsigned long delay);
void kthread_flush_work(struct kthread_work *work);
void kthread_flush_worker(struct kthread_worker *worker);
bool kthread_cancel_work_sync(struct kthread_work *work);
void kthread_destroy_worker(struct kthread_worker *worker);

#endif /* _PKVM_EMU_LINUX_KTHREAD_H__ */
