/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_KERNEL_H_
#define _PKVM_EMU_LINUX_KERNEL_H_

#include <linux/align.h>
#include <linux/bitops.h>
#include <linux/bug.h>
#include <linux/build_bug.h>
#include <linux/compiler.h>
#include <linux/container_of.h>
#include <linux/err.h>
#include <linux/kstrtox.h>
#include <linux/limits.h>
#include <linux/log2.h>
#include <linux/math.h>
#include <linux/minmax.h>
#include <linux/printk.h>
#include <linux/stddef.h>
#include <linux/stdarg.h>
#include <linux/string.h>
#include <linux/stringify.h>
#include <linux/types.h>

#define ARRAY_SIZE(array)	(sizeof(array) / sizeof((array)[0]) + __must_be_array(array))
#define upper_32_bits(n)	((u32)((u64)(n) >> 32))
#define lower_32_bits(n)	((u32)(n))
#define u64_to_user_ptr(n)	((void __user *)(unsigned long)(n))
#define is_signed_type(type)	(((type)(-1)) < (type)1)
#define PTR_IF(cond, ptr)	((cond) ? (ptr) : NULL)
#define might_sleep()		((void)0)
#define might_fault()		((void)0)

__printf(2, 3) int sprintf(char *buf, const char *fmt, ...);
__printf(3, 4) int snprintf(char *buf, size_t size, const char *fmt, ...);
__printf(3, 4) int scnprintf(char *buf, size_t size, const char *fmt, ...);
int vsnprintf(char *buf, size_t size, const char *fmt, va_list args);
__scanf(2, 3) int sscanf(const char *buf, const char *fmt, ...);
void panic(const char *fmt, ...) __noreturn __printf(1, 2);

#endif /* _PKVM_EMU_LINUX_KERNEL_H_ */
