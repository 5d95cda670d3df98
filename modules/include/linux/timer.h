/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_TIMER_H__
#define _PKVM_EMU_LINUX_TIMER_H__

#include <linux/jiffies.h>
#include <linux/list.h>
#include <linux/types.h>

/* Kernels up to 6.6 keep two reserved words here (include/linux/timer.h). */
struct timer_list {
	struct hlist_node entry;
	unsigned long expires;
	void (*function)(struct timer_list *timer);
	u32 flags;
#if PKVM_EMU_ANDROID < 16
	u64 android_kabi_reserved[2];
#endif
};

#define TIMER_DEFERRABLE	0x00080000
#define TIMER_PINNED		0x00100000
#define TIMER_IRQSAFE		0x00200000

struct lock_class_key;
void init_timer_key(struct timer_list *timer, void (*func)(struct timer_list *), unsigned int flags, const char *name,
		    struct lock_class_key *key);
#define timer_setup(timer, callback, flags)	init_timer_key(timer, callback, flags, NULL, NULL)
#define __TIMER_INITIALIZER(func, flags_)	{ .function = (func), .flags = (flags_) }
#define DEFINE_TIMER(name, func)		struct timer_list name = __TIMER_INITIALIZER(func, 0)
#define from_timer(var, timer, field)		container_of(timer, typeof(*(var)), field)

static inline int timer_pending(const struct timer_list *timer) { return timer->entry.pprev != NULL; }
void add_timer(struct timer_list *timer);
void add_timer_on(struct timer_list *timer, int cpu);
int mod_timer(struct timer_list *timer, unsigned long expires);
int mod_timer_pending(struct timer_list *timer, unsigned long expires);
int timer_reduce(struct timer_list *timer, unsigned long expires);
#if PKVM_EMU_ANDROID == 14
int del_timer(struct timer_list *timer);
int del_timer_sync(struct timer_list *timer);
#define timer_delete(timer)		del_timer(timer)
#define timer_delete_sync(timer)	del_timer_sync(timer)
#else
int timer_delete(struct timer_list *timer);
int timer_delete_sync(struct timer_list *timer);
int timer_shutdown_sync(struct timer_list *timer);
#define del_timer(timer)		timer_delete(timer)
#define del_timer_sync(timer)		timer_delete_sync(timer)
#endif

#endif /* _PKVM_EMU_LINUX_TIMER_H__ */
