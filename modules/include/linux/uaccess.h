/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_UACCESS_H_
#define _PKVM_EMU_LINUX_UACCESS_H_

#include <linux/compiler.h>
#include <linux/errno.h>
#include <linux/preempt.h>
#include <linux/types.h>
#include <asm/uaccess.h>

/* Faults in between give an error instead of paging; a module has no user memory mapped, so nothing is to be done. */
#define pagefault_disable()	barrier()
#define pagefault_enable()	barrier()

/* 0, or -EFAULT when the kernel address cannot be read / written (mm/maccess.c). */
long copy_from_kernel_nofault(void *dst, const void *src, size_t size);
long copy_to_kernel_nofault(void *dst, const void *src, size_t size);
#define get_kernel_nofault(value, ptr) \
	({ copy_from_kernel_nofault(&(value), (ptr), sizeof(value)); })

/* The number of bytes not copied. */
unsigned long __arch_copy_from_user(void *to, const void __user *from, unsigned long size);
unsigned long __arch_copy_to_user(void __user *to, const void *from, unsigned long size);
static inline unsigned long copy_from_user(void *to, const void __user *from, unsigned long size)
{
	return __arch_copy_from_user(to, from, size);
}
static inline unsigned long copy_to_user(void __user *to, const void *from, unsigned long size)
{
	return __arch_copy_to_user(to, from, size);
}

#endif /* _PKVM_EMU_LINUX_UACCESS_H_ */
