/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_REBOOT_H__
#define _PKVM_EMU_LINUX_REBOOT_H__

#include <linux/notifier.h>

#define SYS_DOWN	0x0001
#define SYS_RESTART	SYS_DOWN
#define SYS_HALT	0x0002
#define SYS_POWER_OFF	0x0003
enum sys_off_mode {
	SYS_OFF_MODE_POWER_OFF_PREPARE,
	SYS_OFF_MODE_POWER_OFF,
	SYS_OFF_MODE_RESTART_PREPARE,
	SYS_OFF_MODE_RESTART,
};
#define SYS_OFF_PRIO_DEFAULT	0
#define SYS_OFF_PRIO_HIGH	192
struct device;
struct sys_off_data { int mode; void *cb_data; const char *cmd; struct device *dev; };
struct sys_off_handler;
struct sys_off_handler *register_sys_off_handler(enum sys_off_mode mode, int priority,
						 int (*callback)(struct sys_off_data *data), void *cb_data);
void unregister_sys_off_handler(struct sys_off_handler *handler);
int register_reboot_notifier(struct notifier_block *nb);
int unregister_reboot_notifier(struct notifier_block *nb);
int register_restart_handler(struct notifier_block *nb);
int unregister_restart_handler(struct notifier_block *nb);
void kernel_restart(char *command);
void kernel_power_off(void);

#endif /* _PKVM_EMU_LINUX_REBOOT_H__ */
