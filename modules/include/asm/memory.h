/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_MEMORY_H_
#define _PKVM_EMU_ASM_MEMORY_H_

#include <linux/bits.h>
#include <linux/types.h>
#include <asm/page.h>

#define VA_BITS			CONFIG_ARM64_VA_BITS
#define _PAGE_OFFSET(bits)	(-(UL(1) << (bits)))
#define PAGE_OFFSET		_PAGE_OFFSET(VA_BITS)		/* the linear map starts here ... */
#define PAGE_END		_PAGE_OFFSET(VA_BITS - 1)	/* ... and ends here */

#define PHYS_PFN(phys)		((unsigned long)((phys) >> PAGE_SHIFT))
#define PFN_PHYS(pfn)		((phys_addr_t)(pfn) << PAGE_SHIFT)
#define __phys_to_pfn(phys)	PHYS_PFN(phys)
#define __pfn_to_phys(pfn)	PFN_PHYS(pfn)
#define PFN_DOWN(addr)		((addr) >> PAGE_SHIFT)
#define PFN_UP(addr)		(((addr) + PAGE_SIZE - 1) >> PAGE_SHIFT)

#ifndef __KVM_NVHE_HYPERVISOR__
extern s64 memstart_addr;	/* physical address of the first byte of the linear map */
extern u64 kimage_voffset;	/* virtual minus physical address of the kernel image */
#define PHYS_OFFSET		((phys_addr_t)memstart_addr)

#define __is_lm_address(addr)	((u64)(addr) - PAGE_OFFSET < PAGE_END - PAGE_OFFSET)
#define __virt_to_phys(addr) ({ \
	u64 va_ = (u64)(addr); \
	(phys_addr_t)(__is_lm_address(va_) ? va_ - PAGE_OFFSET + PHYS_OFFSET : va_ - kimage_voffset); })
#define __phys_to_virt(phys)	((unsigned long)((phys) - PHYS_OFFSET) | PAGE_OFFSET)

static inline phys_addr_t virt_to_phys(const volatile void *va) { return __virt_to_phys(va); }
static inline void *phys_to_virt(phys_addr_t phys) { return (void *)__phys_to_virt(phys); }
#define __pa(va)		__virt_to_phys((unsigned long)(va))
#define __va(phys)		((void *)__phys_to_virt((phys_addr_t)(phys)))
#define virt_to_pfn(va)		__phys_to_pfn(__virt_to_phys((unsigned long)(va)))
#define pfn_to_kaddr(pfn)	__va(PFN_PHYS(pfn))
#define lm_alias(va)		__va(__pa(va))
#define virt_addr_valid(va)	__is_lm_address(va)
#endif

#endif /* _PKVM_EMU_ASM_MEMORY_H_ */
