/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_IO_H_
#define _PKVM_EMU_ASM_IO_H_

#include <linux/types.h>
#include <asm/barrier.h>
#include <asm/pgtable-prot.h>
#include <asm/memory.h>

#define _PKVM_EMU_RAW_IO(suffix, type, op, reg) \
static __always_inline void __raw_write##suffix(type val, volatile void __iomem *addr) \
{ \
	__asm__ volatile("str" op " %" reg "0, [%1]" : : "rZ"(val), "r"(addr)); \
} \
static __always_inline type __raw_read##suffix(const volatile void __iomem *addr) \
{ \
	type val; \
	__asm__ volatile("ldr" op " %" reg "0, [%1]" : "=r"(val) : "r"(addr)); \
	return val; \
}
_PKVM_EMU_RAW_IO(b, u8, "b", "w")
_PKVM_EMU_RAW_IO(w, u16, "h", "w")
_PKVM_EMU_RAW_IO(l, u32, "", "w")
_PKVM_EMU_RAW_IO(q, u64, "", "x")

#define readb_relaxed(addr)		__raw_readb(addr)
#define readw_relaxed(addr)		__raw_readw(addr)
#define readl_relaxed(addr)		__raw_readl(addr)
#define readq_relaxed(addr)		__raw_readq(addr)
#define writeb_relaxed(val, addr)	__raw_writeb(val, addr)
#define writew_relaxed(val, addr)	__raw_writew(val, addr)
#define writel_relaxed(val, addr)	__raw_writel(val, addr)
#define writeq_relaxed(val, addr)	__raw_writeq(val, addr)

/* A read is over before what follows it, a write comes after what precedes it. */
#define readb(addr)	({ u8 v_ = readb_relaxed(addr); dma_rmb(); v_; })
#define readw(addr)	({ u16 v_ = readw_relaxed(addr); dma_rmb(); v_; })
#define readl(addr)	({ u32 v_ = readl_relaxed(addr); dma_rmb(); v_; })
#define readq(addr)	({ u64 v_ = readq_relaxed(addr); dma_rmb(); v_; })
#define writeb(val, addr)	({ dma_wmb(); writeb_relaxed(val, addr); })
#define writew(val, addr)	({ dma_wmb(); writew_relaxed(val, addr); })
#define writel(val, addr)	({ dma_wmb(); writel_relaxed(val, addr); })
#define writeq(val, addr)	({ dma_wmb(); writeq_relaxed(val, addr); })

#ifndef __KVM_NVHE_HYPERVISOR__
#ifdef PKVM_EMU_IOREMAP_PROT
void __iomem *ioremap_prot(phys_addr_t phys, size_t size, unsigned long prot);
#define _pkvm_emu_ioremap(phys, size, prot)	ioremap_prot(phys, size, prot)
#else
void __iomem *__ioremap(phys_addr_t phys, size_t size, pgprot_t prot);
#define _pkvm_emu_ioremap(phys, size, prot)	__ioremap(phys, size, __pgprot(prot))
#endif
#define ioremap(phys, size)	_pkvm_emu_ioremap(phys, size, PROT_DEVICE_nGnRE)
#define ioremap_np(phys, size)	_pkvm_emu_ioremap(phys, size, PROT_DEVICE_nGnRnE)
#define ioremap_wc(phys, size)	_pkvm_emu_ioremap(phys, size, PROT_NORMAL_NC)
#define ioremap_cache(phys, size)	_pkvm_emu_ioremap(phys, size, PROT_NORMAL)
void iounmap(volatile void __iomem *addr);
#endif

#endif /* _PKVM_EMU_ASM_IO_H_ */
