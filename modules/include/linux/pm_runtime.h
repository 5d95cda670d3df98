/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_PM_RUNTIME_H_
#define _PKVM_EMU_LINUX_PM_RUNTIME_H_

#include <linux/types.h>
struct device;
void pm_runtime_enable(struct device *dev);
void __pm_runtime_disable(struct device *dev, bool check_resume);
int __pm_runtime_resume(struct device *dev, int flags);
int __pm_runtime_suspend(struct device *dev, int flags);
int __pm_runtime_idle(struct device *dev, int flags);
#define RPM_GET_PUT	4
static inline int pm_runtime_get_sync(struct device *dev) { return __pm_runtime_resume(dev, RPM_GET_PUT); }
static inline int pm_runtime_put_sync(struct device *dev) { return __pm_runtime_idle(dev, RPM_GET_PUT); }
static inline int pm_runtime_put_sync_suspend(struct device *dev) { return __pm_runtime_suspend(dev, RPM_GET_PUT); }
static inline void pm_runtime_disable(struct device *dev) { __pm_runtime_disable(dev, true); }

#endif /* _PKVM_EMU_LINUX_PM_RUNTIME_H_ */
