/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_UAPI_LINUX_TYPES_H_
#define _PKVM_EMU_UAPI_LINUX_TYPES_H_

#include <linux/types.h>

#endif /* _PKVM_EMU_UAPI_LINUX_TYPES_H_ */
