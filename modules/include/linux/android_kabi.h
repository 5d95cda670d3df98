/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_ANDROID_KABI_H_
#define _PKVM_EMU_LINUX_ANDROID_KABI_H_

#include <linux/types.h>
/* Room left in a structure for later members, so that offsets stay as they are. */
#define ANDROID_KABI_RESERVE(n)		u64 android_kabi_reserved##n
#define ANDROID_KABI_USE(n, member)	union { member; u64 android_kabi_reserved##n; }

#endif /* _PKVM_EMU_LINUX_ANDROID_KABI_H_ */
