/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_UAPI_LINUX_PSCI_H_
#define _PKVM_EMU_UAPI_LINUX_PSCI_H_

#include <linux/psci.h>

#endif /* _PKVM_EMU_UAPI_LINUX_PSCI_H_ */
