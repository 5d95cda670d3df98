/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_PROC_FS_H_
#define _PKVM_EMU_LINUX_PROC_FS_H_

#include <linux/fs.h>
#include <linux/seq_file.h>
#include <linux/types.h>

struct proc_dir_entry;

struct proc_ops {
	unsigned int proc_flags;
	int (*proc_open)(struct inode *inode, struct file *file);
	ssize_t (*proc_read)(struct file *file, char __user *buf, size_t count, loff_t *pos);
	ssize_t (*proc_read_iter)(struct kiocb *iocb, struct iov_iter *iter);
	ssize_t (*proc_write)(struct file *file, const char __user *buf, size_t count, loff_t *pos);
	loff_t (*proc_lseek)(struct file *file, loff_t offset, int whence);
	int (*proc_release)(struct inode *inode, struct file *file);
	__poll_t (*proc_poll)(struct file *file, struct poll_table_struct *table);
	long (*proc_ioctl)(struct file *file, unsigned int cmd, unsigned long arg);
	long (*proc_compat_ioctl)(struct file *file, unsigned int cmd, unsigned long arg);
	int (*proc_mmap)(struct file *file, struct vm_area_struct *vma);
	unsigned long (*proc_get_unmapped_area)(struct file *file, unsigned long addr, unsigned long len,
		unsigned long pgoff,
						unsigned long flags);
};
static_assert(sizeof(struct proc_ops) == 96);

struct proc_dir_entry *proc_create(const char *name, umode_t mode, struct proc_dir_entry *parent,
	const struct proc_ops *ops);
struct proc_dir_entry *proc_create_data(const char *name, umode_t mode, struct proc_dir_entry *parent,
					const struct proc_ops *ops, void *data);
struct proc_dir_entry *proc_create_seq_private(const char *name, umode_t mode, struct proc_dir_entry *parent,
					       const struct seq_operations *ops, unsigned int state_size, void *data);
struct proc_dir_entry *proc_create_single_data(const char *name, umode_t mode, struct proc_dir_entry *parent,
					       int (*show)(struct seq_file *m, void *v), void *data);
#define proc_create_seq(name, mode, parent, ops)	proc_create_seq_private(name, mode, parent, ops, 0, NULL)
#define proc_create_single(name, mode, parent, show)	proc_create_single_data(name, mode, parent, show, NULL)
struct proc_dir_entry *proc_mkdir(const char *name, struct proc_dir_entry *parent);
struct proc_dir_entry *proc_symlink(const char *name, struct proc_dir_entry *parent, const char *dest);
void proc_remove(struct proc_dir_entry *entry);
void remove_proc_entry(const char *name, struct proc_dir_entry *parent);
int remove_proc_subtree(const char *name, struct proc_dir_entry *parent);
#if PKVM_EMU_KERNEL_CODE >= 6001
static inline void *pde_data(const struct inode *inode) { return inode->i_private; }
#else
void *PDE_DATA(const struct inode *inode);
#define pde_data(inode)	PDE_DATA(inode)
#endif

#define DEFINE_PROC_SHOW_ATTRIBUTE(__name) \
static int __name##_open(struct inode *inode, struct file *file) \
{ \
	return single_open(file, __name##_show, pde_data(inode)); \
} \
static const struct proc_ops __name##_proc_ops = { \
	.proc_open = __name##_open, .proc_read = seq_read, .proc_lseek = seq_lseek, .proc_release = single_release, \
}

#endif /* _PKVM_EMU_LINUX_PROC_FS_H_ */
