/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_STRING_H_
#define _PKVM_EMU_LINUX_STRING_H_

#include <linux/types.h>
#include <linux/errno.h>
#include <asm/string.h>

size_t strlen(const char *s);
size_t strnlen(const char *s, size_t max);
int strcmp(const char *a, const char *b);
int strncmp(const char *a, const char *b, size_t max);
int strcasecmp(const char *a, const char *b);
int strncasecmp(const char *a, const char *b, size_t max);
char *strchr(const char *s, int c);
char *strrchr(const char *s, int c);
char *strstr(const char *s, const char *sub);
char *strnstr(const char *s, const char *sub, size_t max);
char *strpbrk(const char *s, const char *set);
size_t strspn(const char *s, const char *set);
size_t strcspn(const char *s, const char *set);
char *strsep(char **rest, const char *separators);
char *skip_spaces(const char *s);
char *strim(char *s);
char *strcpy(char *dst, const char *src);
char *strncpy(char *dst, const char *src, size_t size);
char *strcat(char *dst, const char *src);
size_t strlcpy(char *dst, const char *src, size_t size);
void *memchr(const void *s, int c, size_t size);
bool sysfs_streq(const char *a, const char *b);
int match_string(const char *const *array, size_t n, const char *s);

char *kstrdup(const char *s, gfp_t gfp);
char *kstrndup(const char *s, size_t max, gfp_t gfp);
#ifdef PKVM_EMU_ALLOC_PROFILING_NAMES
void *kmemdup_noprof(const void *src, size_t size, gfp_t gfp);
#define kmemdup(src, size, gfp)	kmemdup_noprof(src, size, gfp)
#else
void *kmemdup(const void *src, size_t size, gfp_t gfp);
#endif

/* Copies and always terminates; the length, or -E2BIG when cut. The size may be left out for an array. */
#ifdef PKVM_EMU_SIZED_STRSCPY
ssize_t sized_strscpy(char *dst, const char *src, size_t size);
#define _pkvm_emu_strscpy	sized_strscpy
#else
ssize_t strscpy(char *dst, const char *src, size_t size);
#define _pkvm_emu_strscpy	(strscpy)
#endif
#define _pkvm_emu_strscpy_2(dst, src)		_pkvm_emu_strscpy(dst, src, sizeof(dst))
#define _pkvm_emu_strscpy_3(dst, src, size)	_pkvm_emu_strscpy(dst, src, size)
#define _pkvm_emu_strscpy_n(a, b, c, name, ...)	name
#define strscpy(...) \
	_pkvm_emu_strscpy_n(__VA_ARGS__, _pkvm_emu_strscpy_3, _pkvm_emu_strscpy_2, )(__VA_ARGS__)

static inline const char *kbasename(const char *path)
{
	const char *last = strrchr(path, '/');

	return last ? last + 1 : path;
}

static inline const char *str_yes_no(bool v) { return v ? "yes" : "no"; }

#endif /* _PKVM_EMU_LINUX_STRING_H_ */
