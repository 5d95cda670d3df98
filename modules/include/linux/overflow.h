/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_OVERFLOW_H_
#define _PKVM_EMU_LINUX_OVERFLOW_H_

#include <linux/compiler.h>
#include <linux/types.h>
#define check_add_overflow(a, b, result)	__builtin_add_overflow(a, b, result)
#define check_sub_overflow(a, b, result)	__builtin_sub_overflow(a, b, result)
#define check_mul_overflow(a, b, result)	__builtin_mul_overflow(a, b, result)
static inline size_t size_mul(size_t a, size_t b)
{
	size_t bytes;

	return check_mul_overflow(a, b, &bytes) ? ~(size_t)0 : bytes;
}
#define array_size(a, b)		size_mul(a, b)
#define struct_size(p, member, n)	(sizeof(*(p)) + size_mul(sizeof(*(p)->member), n))

#endif /* _PKVM_EMU_LINUX_OVERFLOW_H_ */
