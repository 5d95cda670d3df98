/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_GENERATED_UTSRELEASE_H_
#define _PKVM_EMU_GENERATED_UTSRELEASE_H_

#include <linux/stringify.h>
#define UTS_RELEASE __stringify(PKVM_EMU_KERNEL_MAJOR) "." __stringify(PKVM_EMU_KERNEL_MINOR) "." \
	__stringify(PKVM_EMU_KERNEL_PATCH) "-android" __stringify(PKVM_EMU_ANDROID) "-0"

#endif /* _PKVM_EMU_GENERATED_UTSRELEASE_H_ */
