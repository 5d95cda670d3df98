/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_MODULE_INFO_H_
#define _PKVM_EMU_LINUX_MODULE_INFO_H_

#include <linux/compiler.h>

/* Strings "tag=value" in .modinfo, each with its own terminating zero. */
#ifdef __KVM_NVHE_HYPERVISOR__
#define MODULE_INFO(tag, text)	_Static_assert(1, "")
#else
#define MODULE_INFO(tag, text) \
	static const char __used __aligned(1) __section(".modinfo") __UNIQUE_ID(modinfo_##tag)[] = #tag "=" text
#endif

#endif /* _PKVM_EMU_LINUX_MODULE_INFO_H_ */
