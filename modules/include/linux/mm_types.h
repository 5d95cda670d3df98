/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_MM_TYPES_H_
#define _PKVM_EMU_LINUX_MM_TYPES_H_

#include <linux/types.h>
struct page;
struct mm_struct;
struct vm_area_struct;

#endif /* _PKVM_EMU_LINUX_MM_TYPES_H_ */
