/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_UACCESS_H_
#define _PKVM_EMU_LINUX_UACCESS_H_

#include <linux/compiler.h>
#include <linux/errno.h>
#include <linux/preempt.h>
#include <linux/types.h>
#include <asm/uaccess.h>

/* Faults in between give an error instead of paging: user memory here is always there, or never. */
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
unsigned long __arch_clear_user(void __user *to, unsigned long size);
static inline unsigned long clear_user(void __user *to, unsigned long size) { return __arch_clear_user(to, size); }
long strncpy_from_user(char *to, const char __user *from, long count);
long strnlen_user(const char __user *from, long count);
void *memdup_user(const void __user *from, size_t size);

/* 0 or -EFAULT; the value is loaded and stored as user code would (asm/uaccess.h). */
#define get_user(value, ptr) \
({ \
	unsigned long got_ = 0; \
	long err_ = _pkvm_emu_get_user(&got_, (const void *)(ptr), sizeof(*(ptr))); \
	(value) = (typeof(*(ptr)))got_; \
	err_; \
})
#define put_user(value, ptr) \
	_pkvm_emu_put_user((unsigned long)(typeof(*(ptr)))(value), (void *)(ptr), sizeof(*(ptr)))
#define __get_user	get_user
#define __put_user	put_user

#endif /* _PKVM_EMU_LINUX_UACCESS_H_ */
