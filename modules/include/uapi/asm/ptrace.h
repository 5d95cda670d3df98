/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_UAPI_ASM_PTRACE_H_
#define _PKVM_EMU_UAPI_ASM_PTRACE_H_

#include <asm/ptrace.h>

#endif /* _PKVM_EMU_UAPI_ASM_PTRACE_H_ */
