/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_POLL_H_
#define _PKVM_EMU_LINUX_POLL_H_

#include <linux/fs.h>
#include <linux/types.h>

#define EPOLLIN		0x001U
#define EPOLLPRI	0x002U
#define EPOLLOUT	0x004U
#define EPOLLERR	0x008U
#define EPOLLHUP	0x010U
#define EPOLLRDNORM	0x040U
#define EPOLLWRNORM	0x100U
#define POLLIN		EPOLLIN
#define POLLOUT		EPOLLOUT
#define POLLRDNORM	EPOLLRDNORM
#define POLLWRNORM	EPOLLWRNORM

struct wait_queue_head;

typedef struct poll_table_struct {
	void (*_qproc)(struct file *file, struct wait_queue_head *queue, struct poll_table_struct *table);
	__poll_t _key;
} poll_table;

static inline void poll_wait(struct file *file, struct wait_queue_head *queue, poll_table *table)
{
	if (table && table->_qproc && queue)
		table->_qproc(file, queue, table);
}

#endif /* _PKVM_EMU_LINUX_POLL_H_ */
