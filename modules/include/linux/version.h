/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_VERSION_H_
#define _PKVM_EMU_LINUX_VERSION_H_

#include <pkvm_emu/generation.h>
#define KERNEL_VERSION(major, minor, patch) \
	(((major) << 16) + ((minor) << 8) + ((patch) > 255 ? 255 : (patch)))
#define LINUX_VERSION_CODE \
	KERNEL_VERSION(PKVM_EMU_KERNEL_MAJOR, PKVM_EMU_KERNEL_MINOR, PKVM_EMU_KERNEL_PATCH)
#define LINUX_VERSION_MAJOR PKVM_EMU_KERNEL_MAJOR

#endif /* _PKVM_EMU_LINUX_VERSION_H_ */
