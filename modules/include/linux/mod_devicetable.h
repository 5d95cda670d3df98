/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_MOD_DEVICETABLE_H_
#define _PKVM_EMU_LINUX_MOD_DEVICETABLE_H_

#include <linux/types.h>

struct of_device_id {
	char name[32];
	char type[32];
	char compatible[128];
	const void *data;
};

struct platform_device_id {
	char name[24];
	unsigned long driver_data;
};

#endif /* _PKVM_EMU_LINUX_MOD_DEVICETABLE_H_ */
