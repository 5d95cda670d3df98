// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* Leaves things in the kernel for later: a vendor hook, delayed work that comes again, a thread, a reboot notifier. */
#include <linux/delay.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/reboot.h>
#include <linux/tracepoint.h>
#include <linux/workqueue.h>

DECLARE_HOOK(android_vh_acme_open, TP_PROTO(unsigned int id, int *refuse), TP_ARGS(id, refuse));

static void on_open(void *data, unsigned int id, int *refuse)
{
	pr_info("later: open %u\n", id);
	*refuse = id == 13;
}

static void check(struct work_struct *work)
{
	pr_info("later: checked\n");
	schedule_delayed_work(to_delayed_work(work), HZ);
}
static DECLARE_DELAYED_WORK(checker, check);

static int watch(void *data)
{
	while (!kthread_should_stop()) {
		pr_info("later: watching\n");
		msleep(400);
	}
	return 0;
}

static int on_reboot(struct notifier_block *block, unsigned long event, void *command)
{
	pr_info("later: reboot %s\n", (const char *)command);
	return NOTIFY_DONE;
}
static struct notifier_block reboot_block = { .notifier_call = on_reboot };

static int __init later_init(void)
{
	struct task_struct *watcher = kthread_run(watch, NULL, "watcher");

	if (IS_ERR(watcher))
		return PTR_ERR(watcher);
	schedule_delayed_work(&checker, HZ);
	return register_trace_android_vh_acme_open(on_open, NULL) ?: register_reboot_notifier(&reboot_block);
}
module_init(later_init);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Example of work, threads, hooks and notifiers");
