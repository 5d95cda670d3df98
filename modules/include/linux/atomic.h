/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_ATOMIC_H_
#define _PKVM_EMU_LINUX_ATOMIC_H_

#include <asm/atomic.h>
#include <asm/cmpxchg.h>
#include <asm/barrier.h>

#endif /* _PKVM_EMU_LINUX_ATOMIC_H_ */
