/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_FS_H_
#define _PKVM_EMU_LINUX_FS_H_

#include <linux/build_bug.h>
#include <linux/errno.h>
#include <linux/ioctl.h>
#include <linux/kdev_t.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/types.h>
#include <linux/uaccess.h>

struct address_space;
struct cdev;
struct dentry;
struct dir_context;
struct fasync_struct;
struct file_lock;
struct io_comp_batch;
struct iov_iter;
struct kiocb;
struct pipe_inode_info;
struct poll_table_struct;
struct seq_file;
struct vfsmount;
struct vm_area_struct;

typedef unsigned int __poll_t;
typedef void *fl_owner_t;
typedef unsigned int fop_flags_t;

#define O_ACCMODE	00000003
#define O_RDONLY	00000000
#define O_WRONLY	00000001
#define O_RDWR		00000002
#define O_APPEND	00002000
#define O_NONBLOCK	00004000
#define FASYNC		00020000
#define SEEK_SET	0
#define SEEK_CUR	1
#define SEEK_END	2
#define FMODE_READ	0x1
#define FMODE_WRITE	0x2
#define FMODE_LSEEK	0x4

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};

/*
 * Only the named members are used by module code; the rest is room,
 	so that size and offsets are those of a GKI kernel of the
 * line. (include/linux/fs.h)
 */
#if PKVM_EMU_KERNEL_CODE >= 6001
#define _PKVM_EMU_INODE_CDEV	656
#define _PKVM_EMU_INODE_PRIVATE	696
#else
#define _PKVM_EMU_INODE_CDEV	688
#define _PKVM_EMU_INODE_PRIVATE	728
#endif

struct inode {
	umode_t i_mode;
	u8 _before_ino[62];
	unsigned long i_ino;
	unsigned int i_nlink;
	dev_t i_rdev;
	loff_t i_size;
	u8 _before_cdev[_PKVM_EMU_INODE_CDEV - 88];
	struct cdev *i_cdev;
	u8 _before_private[_PKVM_EMU_INODE_PRIVATE - _PKVM_EMU_INODE_CDEV - 8];
	void *i_private;
};
static_assert(offsetof(struct inode, i_rdev) == 76);
static_assert(offsetof(struct inode, i_cdev) == _PKVM_EMU_INODE_CDEV);
static_assert(offsetof(struct inode, i_private) == _PKVM_EMU_INODE_PRIVATE);

struct file_operations;

#if PKVM_EMU_KERNEL_CODE >= 6012
struct file {
	atomic_long_t f_count;
	u32 f_lock;
	fmode_t f_mode;
	const struct file_operations *f_op;
	struct address_space *f_mapping;
	void *private_data;
	struct inode *f_inode;
	unsigned int f_flags;
	unsigned int f_iocb_flags;
	const void *f_cred;
	struct path f_path;
	struct mutex f_pos_lock;
	loff_t f_pos;
	u8 _rest[120];
};
static_assert(offsetof(struct file, private_data) == 32 && offsetof(struct file, f_pos) == 128);
#elif PKVM_EMU_KERNEL_CODE >= 6006
struct file {
	u64 _first[2];
	u32 f_lock;
	fmode_t f_mode;
	atomic_long_t f_count;
	struct mutex f_pos_lock;
	loff_t f_pos;
	unsigned int f_flags;
	u8 _before_path[76];
	struct path f_path;
	struct inode *f_inode;
	const struct file_operations *f_op;
	u64 f_version;
	void *f_security;
	void *private_data;
	void *f_ep;
	struct address_space *f_mapping;
	u8 _rest[48];
};
static_assert(offsetof(struct file, private_data) == 216 && offsetof(struct file, f_flags) == 88);
#else
struct file {
	u64 _first[2];
	struct path f_path;
	struct inode *f_inode;
	const struct file_operations *f_op;
	u32 f_lock;
	u32 f_write_hint;
	atomic_long_t f_count;
	unsigned int f_flags;
	fmode_t f_mode;
	struct mutex f_pos_lock;
	loff_t f_pos;
	u8 _before_version[72];
	u64 f_version;
	void *f_security;
	void *private_data;
	void *f_ep;
	struct address_space *f_mapping;
	u8 _rest[48];
};
static_assert(offsetof(struct file, private_data) == 216 && offsetof(struct file, f_flags) == 64);
#endif

struct file_operations {
	struct module *owner;
#if PKVM_EMU_KERNEL_CODE >= 6011
	fop_flags_t fop_flags;
#endif
	loff_t (*llseek)(struct file *file, loff_t offset, int whence);
	ssize_t (*read)(struct file *file, char __user *buf, size_t count, loff_t *pos);
	ssize_t (*write)(struct file *file, const char __user *buf, size_t count, loff_t *pos);
	ssize_t (*read_iter)(struct kiocb *iocb, struct iov_iter *iter);
	ssize_t (*write_iter)(struct kiocb *iocb, struct iov_iter *iter);
	int (*iopoll)(struct kiocb *iocb, struct io_comp_batch *batch, unsigned int flags);
#if PKVM_EMU_KERNEL_CODE < 6006
	int (*iterate)(struct file *file, struct dir_context *context);
#endif
	int (*iterate_shared)(struct file *file, struct dir_context *context);
	__poll_t (*poll)(struct file *file, struct poll_table_struct *table);
	long (*unlocked_ioctl)(struct file *file, unsigned int cmd, unsigned long arg);
	long (*compat_ioctl)(struct file *file, unsigned int cmd, unsigned long arg);
	int (*mmap)(struct file *file, struct vm_area_struct *vma);
#if PKVM_EMU_KERNEL_CODE < 6011
	unsigned long mmap_supported_flags;
#endif
	int (*open)(struct inode *inode, struct file *file);
	int (*flush)(struct file *file, fl_owner_t id);
	int (*release)(struct inode *inode, struct file *file);
	int (*fsync)(struct file *file, loff_t start, loff_t end, int datasync);
	int (*fasync)(int fd, struct file *file, int on);
	void *_rest[18];
};

static inline unsigned int iminor(const struct inode *inode) { return MINOR(inode->i_rdev); }
static inline unsigned int imajor(const struct inode *inode) { return MAJOR(inode->i_rdev); }
static inline struct inode *file_inode(const struct file *file) { return file->f_inode; }

loff_t no_llseek(struct file *file, loff_t offset, int whence);
loff_t noop_llseek(struct file *file, loff_t offset, int whence);
loff_t default_llseek(struct file *file, loff_t offset, int whence);
loff_t generic_file_llseek(struct file *file, loff_t offset, int whence);
loff_t fixed_size_llseek(struct file *file, loff_t offset, int whence, loff_t size);
int nonseekable_open(struct inode *inode, struct file *file);
int stream_open(struct inode *inode, struct file *file);
int simple_open(struct inode *inode, struct file *file);
ssize_t simple_read_from_buffer(void __user *to, size_t count, loff_t *pos, const void *from, size_t available);
ssize_t simple_write_to_buffer(void *to, size_t available, loff_t *pos, const void __user *from, size_t count);
int fasync_helper(int fd, struct file *file, int on, struct fasync_struct **queue);
void kill_fasync(struct fasync_struct **queue, int signal, int band);

int simple_attr_open(struct inode *inode, struct file *file, int (*get)(void *, u64 *), int (*set)(void *,
	u64), const char *fmt);
int simple_attr_release(struct inode *inode, struct file *file);
ssize_t simple_attr_read(struct file *file, char __user *buf, size_t len, loff_t *pos);
ssize_t simple_attr_write(struct file *file, const char __user *buf, size_t len, loff_t *pos);
#define DEFINE_SIMPLE_ATTRIBUTE(__fops, __get, __set, __fmt) \
static int __fops##_open(struct inode *inode, struct file *file) \
{ \
	return simple_attr_open(inode, file, __get, __set, __fmt); \
} \
static const struct file_operations __fops = { \
	.owner = THIS_MODULE, .open = __fops##_open, .release = simple_attr_release, .read = simple_attr_read, \
	.write = simple_attr_write, .llseek = generic_file_llseek, \
}

int alloc_chrdev_region(dev_t *dev, unsigned int first, unsigned int count, const char *name);
int register_chrdev_region(dev_t from, unsigned int count, const char *name);
void unregister_chrdev_region(dev_t from, unsigned int count);
int __register_chrdev(unsigned int major, unsigned int first, unsigned int count, const char *name,
		      const struct file_operations *fops);
void __unregister_chrdev(unsigned int major, unsigned int first, unsigned int count, const char *name);
static inline int register_chrdev(unsigned int major, const char *name, const struct file_operations *fops)
{
	return __register_chrdev(major, 0, 256, name, fops);
}
static inline void unregister_chrdev(unsigned int major, const char *name)
{
	__unregister_chrdev(major, 0, 256, name);
}

#endif /* _PKVM_EMU_LINUX_FS_H_ */
