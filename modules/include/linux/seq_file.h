/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_SEQ_FILE_H_
#define _PKVM_EMU_LINUX_SEQ_FILE_H_

#include <linux/fs.h>
#include <linux/mutex.h>
#include <linux/types.h>

struct seq_operations;

struct seq_file {
	char *buf;
	size_t size;
	size_t from;
	size_t count;
	size_t pad_until;
	loff_t index;
	loff_t read_pos;
	struct mutex lock;
	const struct seq_operations *op;
	int poll_event;
	const struct file *file;
	void *private;
};
static_assert(offsetof(struct seq_file, private) == 128);

struct seq_operations {
	void *(*start)(struct seq_file *m, loff_t *pos);
	void (*stop)(struct seq_file *m, void *v);
	void *(*next)(struct seq_file *m, void *v, loff_t *pos);
	int (*show)(struct seq_file *m, void *v);
};

#define SEQ_SKIP	1
#define SEQ_START_TOKEN	((void *)1)

static inline bool seq_has_overflowed(struct seq_file *m) { return m->count == m->size; }

int seq_open(struct file *file, const struct seq_operations *op);
ssize_t seq_read(struct file *file, char __user *buf, size_t size, loff_t *pos);
ssize_t seq_read_iter(struct kiocb *iocb, struct iov_iter *iter);
loff_t seq_lseek(struct file *file, loff_t offset, int whence);
int seq_release(struct inode *inode, struct file *file);
int seq_write(struct seq_file *m, const void *data, size_t len);
__printf(2, 3) void seq_printf(struct seq_file *m, const char *fmt, ...);
#if PKVM_EMU_KERNEL_CODE >= 6012
void __seq_puts(struct seq_file *m, const char *s);
#define seq_puts(m, s)	__seq_puts(m, s)
#else
void seq_puts(struct seq_file *m, const char *s);
#endif
void seq_putc(struct seq_file *m, char c);
void seq_put_decimal_ull(struct seq_file *m, const char *delimiter, unsigned long long num);
void seq_hex_dump(struct seq_file *m, const char *prefix, int prefix_type, int row, int group,
	const void *buf, size_t len,
		  bool ascii);
int single_open(struct file *file, int (*show)(struct seq_file *m, void *v), void *data);
int single_release(struct inode *inode, struct file *file);
void *__seq_open_private(struct file *file, const struct seq_operations *op, int size);
int seq_release_private(struct inode *inode, struct file *file);

#define DEFINE_SHOW_ATTRIBUTE(__name) \
static int __name##_open(struct inode *inode, struct file *file) \
{ \
	return single_open(file, __name##_show, inode->i_private); \
} \
static const struct file_operations __name##_fops = { \
	.owner = THIS_MODULE, .open = __name##_open, .read = seq_read, .llseek = seq_lseek, .release = single_release, \
}

#endif /* _PKVM_EMU_LINUX_SEQ_FILE_H_ */
