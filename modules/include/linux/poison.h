/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_POISON_H_
#define _PKVM_EMU_LINUX_POISON_H_

#include <linux/const.h>
#define POISON_POINTER_DELTA	_AC(0xdead000000000000, UL)
#define LIST_POISON1		((void *)(0x100 + POISON_POINTER_DELTA))
#define LIST_POISON2		((void *)(0x122 + POISON_POINTER_DELTA))

#endif /* _PKVM_EMU_LINUX_POISON_H_ */
