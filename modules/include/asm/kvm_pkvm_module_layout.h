/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_KVM_PKVM_MODULE_LAYOUT_H_
#define _PKVM_EMU_ASM_KVM_PKVM_MODULE_LAYOUT_H_

/* What EL1 knows of the EL2 half of a module (struct module, member arch.hyp). */
#include <linux/types.h>

struct pkvm_module_ops;
struct hyp_event;
struct hyp_printk_fmt;

typedef s32 kvm_nvhe_reloc_t;

struct pkvm_module_section {
	void *start;
	void *end;
};

struct pkvm_el2_module {
	struct pkvm_module_section text;
	struct pkvm_module_section bss;
	struct pkvm_module_section rodata;
	struct pkvm_module_section data;
#ifdef PKVM_EMU_HYP_EVENTS
	struct pkvm_module_section event_ids;
#ifdef PKVM_EMU_HYP_PRINTK
	struct pkvm_module_section patchable_function_entries;
#endif
	struct pkvm_module_section sections;	/* from the lowest to the highest of the above */
#ifdef PKVM_EMU_HYP_PRINTK
	void *hyp_va;
#endif
	struct hyp_event *hyp_events;
#ifdef PKVM_EMU_HYP_PRINTK
	struct hyp_printk_fmt *hyp_printk_fmts;
#endif
	unsigned int nr_hyp_events;
#ifdef PKVM_EMU_HYP_PRINTK
	unsigned int nr_hyp_printk_fmts;
#endif
#endif
	kvm_nvhe_reloc_t *relocs;
#ifdef PKVM_EMU_HYP_EVENTS
	struct list_head node;
#ifdef PKVM_EMU_HYP_PRINTK
	struct list_head ext_symbols;
#else
	unsigned long token;
#endif
#endif
	unsigned int nr_relocs;
	int (*init)(const struct pkvm_module_ops *ops);
};

#if PKVM_EMU_ANDROID == 14
_Static_assert(sizeof(struct pkvm_el2_module) == 88, "pkvm_el2_module");
_Static_assert(offsetof(struct pkvm_el2_module, init) == 80, "pkvm_el2_module.init");
#elif PKVM_EMU_ANDROID == 15
_Static_assert(sizeof(struct pkvm_el2_module) == 160, "pkvm_el2_module");
_Static_assert(offsetof(struct pkvm_el2_module, init) == 152, "pkvm_el2_module.init");
#else
_Static_assert(sizeof(struct pkvm_el2_module) == 200, "pkvm_el2_module");
_Static_assert(offsetof(struct pkvm_el2_module, init) == 192, "pkvm_el2_module.init");
#endif

#endif /* _PKVM_EMU_ASM_KVM_PKVM_MODULE_LAYOUT_H_ */
