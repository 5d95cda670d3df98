/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_SYSFS_H_
#define _PKVM_EMU_LINUX_SYSFS_H_

#include <linux/stat.h>
#include <linux/types.h>
struct kobject;
__printf(2, 3) int sysfs_emit(char *buf, const char *fmt, ...);

#endif /* _PKVM_EMU_LINUX_SYSFS_H_ */
