/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_SCHED_H__
#define _PKVM_EMU_LINUX_SCHED_H__

#include <linux/compiler.h>
#include <linux/types.h>

#define TASK_RUNNING		0x0000
#define TASK_INTERRUPTIBLE	0x0001
#define TASK_UNINTERRUPTIBLE	0x0002
#define TASK_NORMAL		(TASK_INTERRUPTIBLE | TASK_UNINTERRUPTIBLE)
#define MAX_SCHEDULE_TIMEOUT	0x7fffffffffffffffL

/*
 * The part that no build shuffles (SW_TTBR0_PAN, SHADOW_CALL_STACK): thread_info, then the state. The rest is the
 * kernel's own. (arch/arm64/include/asm/thread_info.h, include/linux/sched.h)
 */
struct thread_info {
	unsigned long flags;
	u64 ttbr0;
	union {
		u64 preempt_count;
		struct { u32 count, need_resched; } preempt;
	};
	void *scs_base, *scs_sp;
	u32 cpu;
};
struct task_struct {
	struct thread_info thread_info;
	unsigned int __state;
};

static __always_inline struct task_struct *get_current(void)
{
	unsigned long task;

	__asm__("mrs %0, sp_el0" : "=r"(task));
	return (struct task_struct *)task;
}
#define current			get_current()
#define __set_current_state(state_)	WRITE_ONCE(current->__state, state_)
#define set_current_state(state_) \
	do { WRITE_ONCE(current->__state, state_); __asm__ volatile("dmb ish" ::: "memory"); } while (0)
void schedule(void);
long schedule_timeout(long timeout);
long schedule_timeout_interruptible(long timeout);
long schedule_timeout_uninterruptible(long timeout);
int wake_up_process(struct task_struct *task);
int __cond_resched(void);
#define cond_resched()	__cond_resched()
void yield(void);

#endif /* _PKVM_EMU_LINUX_SCHED_H__ */
