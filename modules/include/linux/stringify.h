/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_STRINGIFY_H_
#define _PKVM_EMU_LINUX_STRINGIFY_H_

/* two steps, so that an argument that is itself a macro is expanded first */
#define __stringify_now(...)	#__VA_ARGS__
#define __stringify(...)	__stringify_now(__VA_ARGS__)

#endif /* _PKVM_EMU_LINUX_STRINGIFY_H_ */
