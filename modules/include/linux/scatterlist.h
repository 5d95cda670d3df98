/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_SCATTERLIST_H_
#define _PKVM_EMU_LINUX_SCATTERLIST_H_

#include <linux/types.h>
struct scatterlist {
	unsigned long page_link;
	unsigned int offset;
	unsigned int length;
	dma_addr_t dma_address;
	unsigned int dma_length;
	unsigned int dma_flags;
};

#endif /* _PKVM_EMU_LINUX_SCATTERLIST_H_ */
