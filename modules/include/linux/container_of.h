/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_CONTAINER_OF_H_
#define _PKVM_EMU_LINUX_CONTAINER_OF_H_

#include <linux/stddef.h>
#include <linux/build_bug.h>
#define container_of(ptr, type, member) ({ \
	void *inner_ = (void *)(ptr); \
	_Static_assert(__same_type(*(ptr), ((type *)0)->member) || __same_type(*(ptr), void), \
		       "container_of: pointer and member differ in type"); \
	(type *)(inner_ - offsetof(type, member)); })
#define typeof_member(type, member)	typeof(((type *)0)->member)

#endif /* _PKVM_EMU_LINUX_CONTAINER_OF_H_ */
