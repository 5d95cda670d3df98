/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_KSTRTOX_H_
#define _PKVM_EMU_LINUX_KSTRTOX_H_

#include <linux/types.h>

/* Whole-string conversions; base 0 recognises 0x and 0. 0, -EINVAL or -ERANGE. (lib/kstrtox.c) */
int kstrtoull(const char *text, unsigned int base, unsigned long long *result);
int kstrtoll(const char *text, unsigned int base, long long *result);
int kstrtouint(const char *text, unsigned int base, unsigned int *result);
int kstrtoint(const char *text, unsigned int base, int *result);
int kstrtou16(const char *text, unsigned int base, u16 *result);
int kstrtou8(const char *text, unsigned int base, u8 *result);
int kstrtobool(const char *text, bool *result);

static inline int kstrtoul(const char *text, unsigned int base, unsigned long *result)
{
	return kstrtoull(text, base, (unsigned long long *)result);
}

static inline int kstrtol(const char *text, unsigned int base, long *result)
{
	return kstrtoll(text, base, (long long *)result);
}

static inline int kstrtou64(const char *text, unsigned int base, u64 *result)
{
	return kstrtoull(text, base, result);
}

static inline int kstrtou32(const char *text, unsigned int base, u32 *result)
{
	return kstrtouint(text, base, result);
}

unsigned long simple_strtoul(const char *text, char **end, unsigned int base);
unsigned long long simple_strtoull(const char *text, char **end, unsigned int base);

#endif /* _PKVM_EMU_LINUX_KSTRTOX_H_ */
