/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_COMPILER_ATTRIBUTES_H_
#define _PKVM_EMU_LINUX_COMPILER_ATTRIBUTES_H_

#define __aligned(n)		__attribute__((__aligned__(n)))
#define __always_inline		inline __attribute__((__always_inline__))
#define noinline		__attribute__((__noinline__))
#define __cold			__attribute__((__cold__))
#define __attribute_const__	__attribute__((__const__))
#define __deprecated
#define __format(kind, fmt, first) __attribute__((__format__(kind, fmt, first)))
#define __printf(fmt, first)	__attribute__((__format__(printf, fmt, first)))
#define __scanf(fmt, first)	__attribute__((__format__(scanf, fmt, first)))
#define __malloc		__attribute__((__malloc__))
#define __maybe_unused		__attribute__((__unused__))
#define __always_unused		__attribute__((__unused__))
#define __must_check		__attribute__((__warn_unused_result__))
#define __noreturn		__attribute__((__noreturn__))
#define __packed		__attribute__((__packed__))
#define __pure			__attribute__((__pure__))
#define __section(name)		__attribute__((__section__(name)))
#define __used			__attribute__((__used__))
#define __weak			__attribute__((__weak__))
#define __visible
#define __alias(symbol)		__attribute__((__alias__(#symbol)))
#define __mode(m)		__attribute__((__mode__(m)))
#define fallthrough		__attribute__((__fallthrough__))
#define __counted_by(member)
#define __nonstring
#define __ro_after_init		__section(".data..ro_after_init")
#define __read_mostly		__section(".data..read_mostly")
#define __no_sanitize_address
#define __nocfi			__attribute__((__no_sanitize__("kcfi")))
#define __hyp_text
#define noinstr			noinline
#define notrace
#define asmlinkage

/* address-space annotations exist for a checker only */
#define __user
#define __kernel
#define __iomem
#define __percpu
#define __rcu
#define __force
#define __bitwise
#define __private
#define __must_hold(lock)
#define __acquires(lock)
#define __releases(lock)
#define __acquire(lock)		((void)0)
#define __release(lock)		((void)0)
#define __chk_user_ptr(p)	((void)0)

#endif /* _PKVM_EMU_LINUX_COMPILER_ATTRIBUTES_H_ */
