/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_TYPES_H_
#define _PKVM_EMU_LINUX_TYPES_H_

#include <linux/compiler_types.h>
#include <linux/stddef.h>
#include <asm/types.h>

typedef _Bool			bool;
typedef unsigned long		uintptr_t;
typedef long			intptr_t;
typedef unsigned long		size_t;
typedef long			ssize_t;
typedef long			ptrdiff_t;
typedef unsigned long		ulong;
typedef unsigned int		uint;
typedef unsigned short		ushort;
typedef unsigned char		uchar;
typedef u8			uint8_t;
typedef u16			uint16_t;
typedef u32			uint32_t;
typedef u64			uint64_t;
typedef s8			int8_t;
typedef s16			int16_t;
typedef s32			int32_t;
typedef s64			int64_t;
typedef u8			u_int8_t;
typedef u16			u_int16_t;
typedef u32			u_int32_t;
typedef __u16			__le16, __be16;
typedef __u32			__le32, __be32;
typedef __u64			__le64, __be64;
typedef u64			phys_addr_t;
typedef phys_addr_t		resource_size_t;
typedef u64			dma_addr_t;
typedef unsigned int		gfp_t;
typedef unsigned int		slab_flags_t;
typedef unsigned int		fmode_t;
typedef unsigned short		umode_t;
typedef int			pid_t;
typedef unsigned int		uid_t, gid_t;
typedef unsigned int		dev_t;
typedef long long		loff_t;
typedef unsigned long		irq_hw_number_t;

/* for sort() and bsearch(): less than, equal to or greater than 0 */
typedef int (*cmp_func_t)(const void *a, const void *b);
typedef int (*cmp_r_func_t)(const void *a, const void *b, const void *priv);
typedef void (*swap_func_t)(void *a, void *b, int size);
typedef void (*swap_r_func_t)(void *a, void *b, int size, const void *priv);

typedef struct { int counter; }	atomic_t;
typedef struct { s64 counter; }	atomic64_t;
typedef atomic64_t		atomic_long_t;

#define ATOMIC_INIT(value)	{ (value) }

struct list_head {
	struct list_head *next, *prev;
};

struct hlist_node {
	struct hlist_node *next, **pprev;
};

struct hlist_head {
	struct hlist_node *first;
};

struct callback_head {
	struct callback_head *next;
	void (*func)(struct callback_head *head);
} __aligned(sizeof(void *));
#define rcu_head callback_head

#define DECLARE_BITMAP(name, bits)	unsigned long name[((bits) + 63) / 64]

#endif /* _PKVM_EMU_LINUX_TYPES_H_ */
