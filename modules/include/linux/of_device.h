/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_OF_DEVICE_H_
#define _PKVM_EMU_LINUX_OF_DEVICE_H_

#include <linux/of.h>
#include <linux/of_platform.h>

#endif /* _PKVM_EMU_LINUX_OF_DEVICE_H_ */
