/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_STRING_H_
#define _PKVM_EMU_ASM_STRING_H_

#include <linux/types.h>

/* At EL2 a module supplies these itself, usually from the ops table. */
void *memset(void *s, int c, size_t size);
void *memcpy(void *dst, const void *src, size_t size);
void *memmove(void *dst, const void *src, size_t size);
int memcmp(const void *a, const void *b, size_t size);

#endif /* _PKVM_EMU_ASM_STRING_H_ */
