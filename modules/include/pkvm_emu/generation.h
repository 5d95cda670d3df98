/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_PKVM_EMU_GENERATION_H_
#define _PKVM_EMU_PKVM_EMU_GENERATION_H_

/*
 * What differs between the Android generations, as feature macros.
 *
 * The build passes three numbers; every other header asks only for the features named here.
 *   PKVM_EMU_ANDROID        14, 15 or 16
 *   PKVM_EMU_KERNEL_MAJOR   5 or 6
 *   PKVM_EMU_KERNEL_MINOR   15 (android14-5.15), 1 (android14-6.1), 6 (android15), 12 (android16)
 */
#ifndef PKVM_EMU_ANDROID
#error "PKVM_EMU_ANDROID is not set: compile with -DPKVM_EMU_ANDROID=14, 15 or 16"
#endif
#if !defined(PKVM_EMU_KERNEL_MAJOR) || !defined(PKVM_EMU_KERNEL_MINOR)
#error "PKVM_EMU_KERNEL_MAJOR and PKVM_EMU_KERNEL_MINOR are not set: for 6.12 they are 6 and 12"
#endif

#ifndef PKVM_EMU_KERNEL_PATCH
#define PKVM_EMU_KERNEL_PATCH	0
#endif

#define PKVM_EMU_KERNEL_CODE	(PKVM_EMU_KERNEL_MAJOR * 1000 + PKVM_EMU_KERNEL_MINOR)

#if PKVM_EMU_ANDROID == 14
/* handlers get the whole CPU context, and the hypervisor presets x0 to 0 for hypercalls */
#define PKVM_EMU_HANDLER_CPU_CONTEXT	1
#define PKVM_EMU_IOMMU_DEVICES		1	/* pkvm_iommu_*(): drivers with registered devices */
#elif PKVM_EMU_ANDROID == 15
#define PKVM_EMU_HYP_EVENTS		1	/* vendor modules may declare hyp events */
#define PKVM_EMU_HYP_ALLOC		1	/* EL2 heap with host top-up */
#define PKVM_EMU_HYP_LIST_OPS		1
#define PKVM_EMU_MOD_CALL_SMCCC		1
#define PKVM_EMU_IOMMU_DOMAINS		1	/* kvm_iommu_*(): one driver with domains */
#define PKVM_EMU_IOMMU_INIT_ARG		1	/* ... whose order of functions is that of 6.6 */
#elif PKVM_EMU_ANDROID == 16
#define PKVM_EMU_HYP_EVENTS		1
#define PKVM_EMU_HYP_PRINTK		1	/* trace_hyp_printk() in vendor modules */
#define PKVM_EMU_HYP_ALLOC		1
#define PKVM_EMU_HYP_LIST_OPS		1
#define PKVM_EMU_MOD_CALL_SMCCC		1
#define PKVM_EMU_IOMMU_DOMAINS		1
#else
#error "PKVM_EMU_ANDROID must be 14, 15 or 16"
#endif

/* exported kernel functions changed their names over time */
#if PKVM_EMU_KERNEL_CODE >= 6012
#define PKVM_EMU_ALLOC_PROFILING_NAMES	1	/* __kmalloc_noprof() and friends */
#define PKVM_EMU_SIZED_STRSCPY		1
#endif
#if PKVM_EMU_KERNEL_CODE >= 6001
#define PKVM_EMU_IOREMAP_PROT		1
#define PKVM_EMU_USLEEP_RANGE_STATE	1
#endif
#if PKVM_EMU_KERNEL_CODE >= 6011
#define PKVM_EMU_PLATFORM_REMOVE_VOID	1	/* platform_driver.remove returns void */
#endif

#endif /* _PKVM_EMU_PKVM_EMU_GENERATION_H_ */
