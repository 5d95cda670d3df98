/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_TRACE_SEQ_H_
#define _PKVM_EMU_LINUX_TRACE_SEQ_H_

#include <linux/seq_buf.h>
#include <linux/types.h>

/* Text under construction; a module only hands it on. */
struct trace_seq {
	char buffer[4096];
	struct seq_buf seq;
	size_t readpos;
	int full;
};

void trace_seq_puts(struct trace_seq *seq, const char *text);
void trace_seq_putc(struct trace_seq *seq, unsigned char c);
__printf(2, 3) void trace_seq_printf(struct trace_seq *seq, const char *fmt, ...);

#endif /* _PKVM_EMU_LINUX_TRACE_SEQ_H_ */
