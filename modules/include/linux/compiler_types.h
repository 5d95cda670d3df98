/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_COMPILER_TYPES_H_
#define _PKVM_EMU_LINUX_COMPILER_TYPES_H_

#include <linux/compiler_attributes.h>

#endif /* _PKVM_EMU_LINUX_COMPILER_TYPES_H_ */
