/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_JUMP_LABEL_H__
#define _PKVM_EMU_LINUX_JUMP_LABEL_H__

#include <linux/types.h>

struct static_key { s32 enabled; union { unsigned long type; void *entries; }; };
struct static_key_true { struct static_key key; };
struct static_key_false { struct static_key key; };
#define DEFINE_STATIC_KEY_FALSE(name)	struct static_key_false name = { }
void static_key_slow_inc(struct static_key *key);
void static_key_slow_dec(struct static_key *key);
void static_key_enable(struct static_key *key);
void static_key_disable(struct static_key *key);
#define static_branch_inc(x)	static_key_slow_inc(&(x)->key)
#define static_branch_dec(x)	static_key_slow_dec(&(x)->key)
#define static_branch_enable(x)	static_key_enable(&(x)->key)
#define static_branch_disable(x)	static_key_disable(&(x)->key)

/* A NOP that becomes a branch while the key is on; __jump_table says where (include/linux/jump_label.h). */
static __always_inline bool _pkvm_emu_static_branch(struct static_key *const key)
{
	__asm__ goto("1: nop\n"
		     ".pushsection __jump_table, \"aw\"\n"
		     ".align 3\n"
		     ".long 1b - ., %l[taken] - .\n"
		     ".quad %c0 - .\n"
		     ".popsection\n"
		     : : "i"(key) : : taken);
	return false;
taken:
	return true;
}
#define static_branch_unlikely(x)	_pkvm_emu_static_branch(&(x)->key)

#endif /* _PKVM_EMU_LINUX_JUMP_LABEL_H__ */
