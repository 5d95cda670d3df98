/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_RCUPDATE_H_
#define _PKVM_EMU_LINUX_RCUPDATE_H_

#include <linux/compiler.h>
#include <linux/types.h>
#include <asm/barrier.h>
#define rcu_read_lock()			barrier()
#define rcu_read_unlock()		barrier()
#define rcu_dereference(p)		READ_ONCE(p)
#define rcu_assign_pointer(p, v)	smp_store_release(&(p), (v))
void synchronize_rcu(void);
void call_rcu(struct callback_head *head, void (*func)(struct callback_head *head));
void rcu_barrier(void);

#endif /* _PKVM_EMU_LINUX_RCUPDATE_H_ */
