/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_NVHE_TRAP_HANDLER_H_
#define _PKVM_EMU_NVHE_TRAP_HANDLER_H_

#include <asm/kvm_host.h>
#ifdef PKVM_EMU_HANDLER_CPU_CONTEXT
#define cpu_reg(ctxt, n)	((ctxt)->regs.regs[n])
#else
#define cpu_reg(ctxt, n)	((ctxt)->regs[n])
#endif
/* a local variable holding argument n of a handler */
#define DECLARE_REG(type, name, ctxt, n)	type name = (type)cpu_reg(ctxt, n)

#endif /* _PKVM_EMU_NVHE_TRAP_HANDLER_H_ */
