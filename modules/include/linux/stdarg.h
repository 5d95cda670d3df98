/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_STDARG_H_
#define _PKVM_EMU_LINUX_STDARG_H_

typedef __builtin_va_list va_list;
#define va_start(args, last)	__builtin_va_start(args, last)
#define va_end(args)		__builtin_va_end(args)
#define va_arg(args, type)	__builtin_va_arg(args, type)
#define va_copy(to, from)	__builtin_va_copy(to, from)

#endif /* _PKVM_EMU_LINUX_STDARG_H_ */
