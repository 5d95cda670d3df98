/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_INIT_H_
#define _PKVM_EMU_LINUX_INIT_H_

#include <linux/compiler.h>
#include <linux/types.h>

#define __init		__section(".init.text") __cold
#define __initdata	__section(".init.data")
#define __initconst	__section(".init.rodata")
#define __exit		__section(".exit.text") __used __cold
#define __exitdata	__section(".exit.data")
#define __ref
#define __refdata
#define __meminit	__init

typedef int (*initcall_t)(void);
typedef void (*exitcall_t)(void);

/* The loader calls init_module() and cleanup_module(); a module names its own functions through aliases. */
#ifndef __KVM_NVHE_HYPERVISOR__
#define module_init(fn) \
	static inline initcall_t __maybe_unused __inittest(void) { return fn; } \
	int init_module(void) __attribute__((__alias__(#fn))); \
	__ADDRESSABLE(init_module)
#define module_exit(fn) \
	static inline exitcall_t __maybe_unused __exittest(void) { return fn; } \
	void cleanup_module(void) __attribute__((__alias__(#fn))); \
	__ADDRESSABLE(cleanup_module)
#define early_initcall(fn)	module_init(fn)
#define core_initcall(fn)	module_init(fn)
#define postcore_initcall(fn)	module_init(fn)
#define arch_initcall(fn)	module_init(fn)
#define subsys_initcall(fn)	module_init(fn)
#define device_initcall(fn)	module_init(fn)
#define late_initcall(fn)	module_init(fn)
#endif

#endif /* _PKVM_EMU_LINUX_INIT_H_ */
