/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_FS_H_
#define _PKVM_EMU_LINUX_FS_H_

#include <linux/types.h>
struct file;
struct inode;

#endif /* _PKVM_EMU_LINUX_FS_H_ */
