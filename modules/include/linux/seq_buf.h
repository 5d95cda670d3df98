/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_SEQ_BUF_H_
#define _PKVM_EMU_LINUX_SEQ_BUF_H_

#include <linux/types.h>
struct seq_buf { char *buffer; size_t size; size_t len; };

#endif /* _PKVM_EMU_LINUX_SEQ_BUF_H_ */
