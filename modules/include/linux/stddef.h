/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_STDDEF_H_
#define _PKVM_EMU_LINUX_STDDEF_H_

#undef NULL
#define NULL ((void *)0)
#ifndef __bool_true_false_are_defined
#define true	1
#define false	0
#define __bool_true_false_are_defined 1
#endif

#define offsetof(type, member)		__builtin_offsetof(type, member)
#define sizeof_field(type, member)	sizeof(((type *)0)->member)
#define offsetofend(type, member)	(offsetof(type, member) + sizeof_field(type, member))

#endif /* _PKVM_EMU_LINUX_STDDEF_H_ */
