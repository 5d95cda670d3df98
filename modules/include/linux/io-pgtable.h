/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_IO_PGTABLE_H_
#define _PKVM_EMU_LINUX_IO_PGTABLE_H_

#include <linux/types.h>
enum io_pgtable_fmt {
	ARM_32_LPAE_S1, ARM_32_LPAE_S2, ARM_64_LPAE_S1, ARM_64_LPAE_S2, ARM_V7S,
};

#endif /* _PKVM_EMU_LINUX_IO_PGTABLE_H_ */
