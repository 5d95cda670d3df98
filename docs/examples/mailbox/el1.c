// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* A driver with a character device in front of its EL2 half: an ioctl makes a hypercall. */
#include <linux/debugfs.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/uaccess.h>
#include <asm/kvm_pkvm_module.h>

struct mailbox_message {
	u64 text;
	u64 posts;
};
#define MAILBOX_POST	_IOWR('m', 1, struct mailbox_message)
#define MAILBOX_FETCH	_IOR('m', 2, u64)

int __kvm_nvhe_mailbox_hyp_init(const struct pkvm_module_ops *ops);
void __kvm_nvhe_mailbox_post(struct user_pt_regs *regs);
void __kvm_nvhe_mailbox_fetch(struct user_pt_regs *regs);

static int post, fetch;
static u32 calls;
static struct dentry *directory;

static long mailbox_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct mailbox_message letter;
	struct arm_smccc_res res;

	calls++;
	switch (cmd) {
	case MAILBOX_POST:
		if (copy_from_user(&letter, (void __user *)arg, sizeof(letter)))
			return -EFAULT;
		if (!letter.text)
			return -EINVAL;
		res = pkvm_el2_mod_call_smccc(post, letter.text);
		letter.posts = res.a1;
		return copy_to_user((void __user *)arg, &letter, sizeof(letter)) ? -EFAULT : 0;
	case MAILBOX_FETCH:
		res = pkvm_el2_mod_call_smccc(fetch);
		return put_user((u64)res.a1, (u64 __user *)arg);
	}
	return -ENOTTY;
}

static const struct file_operations mailbox_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = mailbox_ioctl,
};

static struct miscdevice mailbox = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "mailbox",
	.fops = &mailbox_fops,
};

static int state_show(struct seq_file *m, void *unused)
{
	seq_printf(m, "calls %u\npost hypercall %d\n", calls, post);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(state);

static int __init mailbox_init(void)
{
	unsigned long token;
	int ret = pkvm_load_el2_module(__kvm_nvhe_mailbox_hyp_init, &token);

	if (ret)
		return ret;
	post = pkvm_register_el2_mod_call(__kvm_nvhe_mailbox_post, token);
	fetch = pkvm_register_el2_mod_call(__kvm_nvhe_mailbox_fetch, token);
	directory = debugfs_create_dir("mailbox", NULL);
	debugfs_create_file("state", 0400, directory, NULL, &state_fops);
	debugfs_create_u32("calls", 0644, directory, &calls);
	return misc_register(&mailbox);
}
module_init(mailbox_init);
MODULE_DESCRIPTION("A message kept at EL2, posted and fetched by ioctl");
MODULE_LICENSE("GPL");
