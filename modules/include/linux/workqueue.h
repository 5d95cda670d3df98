/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_WORKQUEUE_H__
#define _PKVM_EMU_LINUX_WORKQUEUE_H__

#include <linux/atomic.h>
#include <linux/list.h>
#include <linux/timer.h>

/* Kernels up to 6.6 keep two reserved words here (include/linux/workqueue.h). */
struct work_struct {
	atomic_long_t data;
	struct list_head entry;
	void (*func)(struct work_struct *work);
#if PKVM_EMU_ANDROID < 16
	u64 android_kabi_reserved[2];
#endif
};
typedef void (*work_func_t)(struct work_struct *work);

struct workqueue_struct;
struct delayed_work {
	struct work_struct work;
	struct timer_list timer;
	struct workqueue_struct *wq;
	int cpu;
	u64 android_kabi_reserved[2];
};

#define WQ_UNBOUND		(1 << 1)
#define WQ_FREEZABLE		(1 << 2)
#define WQ_MEM_RECLAIM		(1 << 3)
#define WQ_HIGHPRI		(1 << 4)
#define WQ_CPU_INTENSIVE	(1 << 5)
#define __WQ_ORDERED		(1 << 17)
#define __WQ_LEGACY		(1 << 18)
#define WORK_CPU_UNBOUND	CONFIG_NR_CPUS
/* nobody's, with the number of no pool (WORK_STRUCT_NO_POOL) */
#define _PKVM_EMU_WORK_DATA	0xfffffffe0L

#define __WORK_INITIALIZER(n, f) \
	{ .data = { _PKVM_EMU_WORK_DATA }, .entry = LIST_HEAD_INIT((n).entry), .func = (f) }
#define DECLARE_WORK(n, f)	struct work_struct n = __WORK_INITIALIZER(n, f)
#define DECLARE_DELAYED_WORK(n, f) \
	struct delayed_work n = { .work = __WORK_INITIALIZER((n).work, f), \
				  .timer = __TIMER_INITIALIZER(delayed_work_timer_fn, TIMER_IRQSAFE) }
#define INIT_WORK(w, f) \
	do { atomic_long_set(&(w)->data, _PKVM_EMU_WORK_DATA); INIT_LIST_HEAD(&(w)->entry); (w)->func = (f); } while (0)
#define INIT_DELAYED_WORK(w, f) \
	do { INIT_WORK(&(w)->work, f); timer_setup(&(w)->timer, delayed_work_timer_fn, TIMER_IRQSAFE); } while (0)
#define to_delayed_work(w)	container_of(w, struct delayed_work, work)
#define work_pending(w)		(atomic_long_read(&(w)->data) & 1)
#define delayed_work_pending(w)	work_pending(&(w)->work)

void delayed_work_timer_fn(struct timer_list *timer);
extern struct workqueue_struct *system_wq, *system_highpri_wq, *system_long_wq, *system_unbound_wq,
	*system_freezable_wq, *system_power_efficient_wq;
struct workqueue_struct *alloc_workqueue(const char *fmt, unsigned int flags, int max_active, ...);
#define alloc_ordered_workqueue(fmt, flags, args...) \
	alloc_workqueue(fmt, WQ_UNBOUND | __WQ_ORDERED | (flags), 1, ##args)
#define create_singlethread_workqueue(name) \
	alloc_workqueue("%s", WQ_UNBOUND | __WQ_ORDERED | __WQ_LEGACY | WQ_MEM_RECLAIM, 1, name)
#define create_workqueue(name)	alloc_workqueue("%s", __WQ_LEGACY | WQ_MEM_RECLAIM, 1, name)
void destroy_workqueue(struct workqueue_struct *wq);
bool queue_work_on(int cpu, struct workqueue_struct *wq, struct work_struct *work);
bool queue_delayed_work_on(int cpu, struct workqueue_struct *wq, struct delayed_work *work, unsigned long delay);
bool mod_delayed_work_on(int cpu, struct workqueue_struct *wq, struct delayed_work *work, unsigned long delay);
bool flush_work(struct work_struct *work);
bool cancel_work(struct work_struct *work);
bool cancel_work_sync(struct work_struct *work);
bool flush_delayed_work(struct delayed_work *work);
bool cancel_delayed_work(struct delayed_work *work);
bool cancel_delayed_work_sync(struct delayed_work *work);
void drain_workqueue(struct workqueue_struct *wq);
unsigned int work_busy(struct work_struct *work);
void __flush_workqueue(struct workqueue_struct *wq);
#define flush_workqueue(wq)	__flush_workqueue(wq)
static inline bool queue_work(struct workqueue_struct *wq, struct work_struct *work)
{
	return queue_work_on(WORK_CPU_UNBOUND, wq, work);
}
static inline bool queue_delayed_work(struct workqueue_struct *wq, struct delayed_work *work, unsigned long delay)
{
	return queue_delayed_work_on(WORK_CPU_UNBOUND, wq, work, delay);
}
static inline bool mod_delayed_work(struct workqueue_struct *wq, struct delayed_work *work, unsigned long delay)
{
	return mod_delayed_work_on(WORK_CPU_UNBOUND, wq, work, delay);
}
static inline bool schedule_work(struct work_struct *work) { return queue_work(system_wq, work); }
static inline bool schedule_work_on(int cpu, struct work_struct *work) { return queue_work_on(cpu, system_wq, work); }
static inline bool schedule_delayed_work(struct delayed_work *work, unsigned long delay)
{
	return queue_delayed_work(system_wq, work, delay);
}

#endif /* _PKVM_EMU_LINUX_WORKQUEUE_H__ */
