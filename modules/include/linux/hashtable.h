/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_HASHTABLE_H_
#define _PKVM_EMU_LINUX_HASHTABLE_H_

#include <linux/list.h>
#define DEFINE_HASHTABLE(name, bits)	struct hlist_head name[1 << (bits)] = { }

#endif /* _PKVM_EMU_LINUX_HASHTABLE_H_ */
