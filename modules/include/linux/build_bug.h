/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_BUILD_BUG_H_
#define _PKVM_EMU_LINUX_BUILD_BUG_H_

#include <linux/compiler.h>
#define BUILD_BUG_ON(cond)		_Static_assert(!(cond), "BUILD_BUG_ON failed: " #cond)
#define BUILD_BUG_ON_MSG(cond, text)	_Static_assert(!(cond), text)
#define BUILD_BUG_ON_ZERO(cond)		((int)sizeof(struct { int bad_ : (cond) ? -1 : 1; }) * 0)
#define BUILD_BUG()			BUILD_BUG_ON_MSG(1, "BUILD_BUG reached")
/* the second argument may be left out */
#define static_assert(cond, ...)	_pkvm_emu_static_assert(cond, ##__VA_ARGS__, #cond)
#define _pkvm_emu_static_assert(cond, text, ...)	_Static_assert(cond, text)

#endif /* _PKVM_EMU_LINUX_BUILD_BUG_H_ */
