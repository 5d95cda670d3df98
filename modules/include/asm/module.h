/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_MODULE_H_
#define _PKVM_EMU_ASM_MODULE_H_

#include <asm/kvm_pkvm_module_layout.h>

struct mod_plt_sec {
	int plt_shndx;
	int plt_num_entries;
	int plt_max_entries;
};

/* The arm64 part of struct module. */
struct mod_arch_specific {
	struct mod_plt_sec core;
	struct mod_plt_sec init;
	void *ftrace_trampolines;
	struct pkvm_el2_module hyp;
};
_Static_assert(offsetof(struct mod_arch_specific, hyp) == 32, "mod_arch_specific.hyp");

#endif /* _PKVM_EMU_ASM_MODULE_H_ */
