/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_PAGE_DEF_H_
#define _PKVM_EMU_ASM_PAGE_DEF_H_

#include <asm/page.h>

#endif /* _PKVM_EMU_ASM_PAGE_DEF_H_ */
