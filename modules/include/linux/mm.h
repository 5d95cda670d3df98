/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_MM_H_
#define _PKVM_EMU_LINUX_MM_H_

#include <linux/gfp.h>
#include <linux/kernel.h>
#include <linux/list.h>
#include <linux/mm_types.h>
#include <asm/page.h>
#include <asm/memory.h>

#define PAGE_ALIGN(addr)	ALIGN(addr, PAGE_SIZE)
#define PAGE_ALIGN_DOWN(addr)	ALIGN_DOWN(addr, PAGE_SIZE)
#define PAGE_ALIGNED(addr)	IS_ALIGNED((unsigned long)(addr), PAGE_SIZE)
#define offset_in_page(p)	((unsigned long)(p) & ~PAGE_MASK)

static inline int get_order(unsigned long size)
{
	return size <= PAGE_SIZE ? 0 : fls64((size - 1) >> PAGE_SHIFT);
}

#define VM_READ		0x00000001
#define VM_WRITE	0x00000002
#define VM_EXEC		0x00000004
#define VM_SHARED	0x00000008
#define VM_PFNMAP	0x00000400
#define VM_IO		0x00004000
#define VM_DONTEXPAND	0x00040000
#define VM_DONTDUMP	0x04000000

/* What a fault handler answers. */
typedef unsigned int vm_fault_t;
#define VM_FAULT_OOM	0x0001
#define VM_FAULT_SIGBUS	0x0002
#define VM_FAULT_NOPAGE	0x0100

struct file;

/* Offsets of GKI kernels (include/linux/mm_types.h); what lies between the members is not used by modules. */
struct vm_operations_struct;
#if PKVM_EMU_KERNEL_CODE >= 6012
#define _PKVM_EMU_VMA_OPS	72
#elif PKVM_EMU_KERNEL_CODE >= 6006
#define _PKVM_EMU_VMA_OPS	112
#elif PKVM_EMU_KERNEL_CODE >= 6001
#define _PKVM_EMU_VMA_OPS	120
#else
#define _PKVM_EMU_VMA_OPS	144
#endif
struct vm_area_struct {
	unsigned long vm_start;
	unsigned long vm_end;
#if PKVM_EMU_KERNEL_CODE >= 6001
	struct mm_struct *vm_mm;
	unsigned long vm_page_prot;
	unsigned long vm_flags;
	u8 _before_ops[_PKVM_EMU_VMA_OPS - 40];
#else
	u8 _before_mm[48];
	struct mm_struct *vm_mm;
	unsigned long vm_page_prot;
	unsigned long vm_flags;
	u8 _before_ops[_PKVM_EMU_VMA_OPS - 88];
#endif
	const struct vm_operations_struct *vm_ops;
	unsigned long vm_pgoff;
	struct file *vm_file;
	void *vm_private_data;
	u8 _rest[80];
};

struct vm_fault {
	struct vm_area_struct *vma;
	gfp_t gfp_mask;
	unsigned long pgoff;
	unsigned long address;
#if PKVM_EMU_KERNEL_CODE >= 6001
	unsigned long real_address;
#endif
	unsigned int flags;
	void *pmd, *pud;
	u64 orig_pte;
	struct page *cow_page;
	struct page *page;
	u64 _rest[8];
};

struct vm_operations_struct {
	void (*open)(struct vm_area_struct *vma);
	void (*close)(struct vm_area_struct *vma);
	int (*may_split)(struct vm_area_struct *vma, unsigned long addr);
	int (*mremap)(struct vm_area_struct *vma);
	int (*mprotect)(struct vm_area_struct *vma, unsigned long start, unsigned long end, unsigned long flags);
	vm_fault_t (*fault)(struct vm_fault *vmf);
	void *_rest[10];
};

int remap_pfn_range(struct vm_area_struct *vma, unsigned long addr, unsigned long pfn, unsigned long size,
	unsigned long prot);
int vm_insert_page(struct vm_area_struct *vma, unsigned long addr, struct page *page);
vm_fault_t vmf_insert_pfn(struct vm_area_struct *vma, unsigned long addr, unsigned long pfn);

#endif /* _PKVM_EMU_LINUX_MM_H_ */
