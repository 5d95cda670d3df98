/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_BUG_H_
#define _PKVM_EMU_LINUX_BUG_H_

#include <asm/bug.h>
#include <linux/build_bug.h>

#endif /* _PKVM_EMU_LINUX_BUG_H_ */
