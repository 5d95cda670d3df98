/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_COMPILER_H_
#define _PKVM_EMU_LINUX_COMPILER_H_

#include <linux/compiler_types.h>

#define likely(cond)		__builtin_expect(!!(cond), 1)
#define unlikely(cond)		__builtin_expect(!!(cond), 0)
#define barrier()		__asm__ __volatile__("" : : : "memory")
#define unreachable()		__builtin_unreachable()
#define __compiletime_assert(cond, text)	_Static_assert(cond, text)
#define OPTIMIZER_HIDE_VAR(var)	__asm__("" : "=r"(var) : "0"(var))
#define RELOC_HIDE(ptr, off)	((typeof(ptr))((unsigned long)(ptr) + (off)))
#define __same_type(a, b)	__builtin_types_compatible_p(typeof(a), typeof(b))
#define __must_be_array(a)	(0 * sizeof(struct { int not_an_array : __same_type(&*(a), (a)) ? -1 : 1; }))
#define __stringify_label(n)	#n
#define __UNIQUE_ID_3(prefix, n)	__UNIQUE_ID_##prefix##n
#define __UNIQUE_ID_2(prefix, n)	__UNIQUE_ID_3(prefix, n)
#define __UNIQUE_ID(prefix)	__UNIQUE_ID_2(prefix, __COUNTER__)
#define __ADDRESSABLE(symbol) \
	static void *__used __section(".discard.addressable") __UNIQUE_ID(symbol) = (void *)&symbol

/* One access of the object's own width, neither split, merged nor dropped by the compiler. */
#define READ_ONCE(object)		(*(const volatile typeof(object) *)&(object))
#define WRITE_ONCE(object, value)	do { *(volatile typeof(object) *)&(object) = (value); } while (0)
#define data_race(expr)			(expr)

#define _THIS_IP_	({ __label__ here; here: (unsigned long)&&here; })
#define _RET_IP_	((unsigned long)__builtin_return_address(0))

#endif /* _PKVM_EMU_LINUX_COMPILER_H_ */
