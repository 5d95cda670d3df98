/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_UAPI_LINUX_ERRNO_H_
#define _PKVM_EMU_UAPI_LINUX_ERRNO_H_

#include <linux/errno.h>

#endif /* _PKVM_EMU_UAPI_LINUX_ERRNO_H_ */
