/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_EXPORT_H_
#define _PKVM_EMU_LINUX_EXPORT_H_

#include <linux/compiler.h>
#include <linux/stringify.h>

/*
 * An exported symbol is three 32-bit self-relative offsets (value, name, name space) in a section of its own,
 * "___ksymtab+<symbol>"; the module link sorts these into __ksymtab / __ksymtab_gpl. The strings go to
 * __ksymtab_strings. (include/linux/export.h, include/linux/export-internal.h)
 */
#if defined(__KVM_NVHE_HYPERVISOR__) || defined(__DISABLE_EXPORTS)
#define _PKVM_EMU_EXPORT(symbol, kind, space)
#else
#define _PKVM_EMU_EXPORT(symbol, kind, space) \
	extern typeof(symbol) symbol; \
	__asm__(".pushsection \"__ksymtab_strings\",\"aMS\",%progbits,1\n" \
		"__kstrtab_" #symbol ":\n\t.asciz \"" #symbol "\"\n" \
		"__kstrtabns_" #symbol ":\n\t.asciz \"" space "\"\n" \
		".popsection\n" \
		".pushsection \"___ksymtab" kind "+" #symbol "\",\"a\"\n" \
		"\t.balign 4\n" \
		"__ksymtab_" #symbol ":\n" \
		"\t.long " #symbol " - .\n" \
		"\t.long __kstrtab_" #symbol " - .\n" \
		"\t.long __kstrtabns_" #symbol " - .\n" \
		".popsection")
#endif

#define EXPORT_SYMBOL(symbol)			_PKVM_EMU_EXPORT(symbol, "", "")
#define EXPORT_SYMBOL_GPL(symbol)		_PKVM_EMU_EXPORT(symbol, "_gpl", "")
#define EXPORT_SYMBOL_NS(symbol, space)		_PKVM_EMU_EXPORT(symbol, "", __stringify(space))
#define EXPORT_SYMBOL_NS_GPL(symbol, space)	_PKVM_EMU_EXPORT(symbol, "_gpl", __stringify(space))

#ifdef MODULE
extern struct module __this_module;
#define THIS_MODULE (&__this_module)
#else
#define THIS_MODULE ((struct module *)0)
#endif

#endif /* _PKVM_EMU_LINUX_EXPORT_H_ */
