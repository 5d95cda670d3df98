/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_KCONFIG_H_
#define _PKVM_EMU_LINUX_KCONFIG_H_

/* Force-included into every translation unit: options, IS_ENABLED() and the attribute names. */
#include <generated/autoconf.h>

/*
 * An option that is on is defined to 1, so pasting it to this prefix gives a macro that expands to an
 * extra argument; an option that is off pastes to an unknown word and gives none.
 */
#define _PKVM_EMU_OPTION_IS_1			0,
#define _pkvm_emu_second(ignored, value, ...)	value
#define _pkvm_emu_pick(extra_or_junk)		_pkvm_emu_second(extra_or_junk 1, 0, 0)
#define _pkvm_emu_paste(value)			_pkvm_emu_pick(_PKVM_EMU_OPTION_IS_##value)
#define _pkvm_emu_is_one(option)		_pkvm_emu_paste(option)

/* The last step is one level deeper so that OPTION and OPTION_MODULE are expanded before the paste. */
#define IS_BUILTIN(option)	_pkvm_emu_is_one(option)
#define IS_MODULE(option)	_pkvm_emu_is_one(option##_MODULE)
#define IS_ENABLED(option)	(IS_BUILTIN(option) || IS_MODULE(option))
#ifdef MODULE
#define IS_REACHABLE(option)	IS_ENABLED(option)
#else
#define IS_REACHABLE(option)	IS_BUILTIN(option)
#endif

#ifndef __ASSEMBLY__
#include <linux/compiler_types.h>
#endif

#endif /* _PKVM_EMU_LINUX_KCONFIG_H_ */
