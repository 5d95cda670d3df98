/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_UUID_H_
#define _PKVM_EMU_LINUX_UUID_H_

#include <linux/types.h>
#define UUID_SIZE	16
typedef struct { u8 b[UUID_SIZE]; } uuid_t;
typedef struct { u8 b[UUID_SIZE]; } guid_t;
#define UUID_INIT(a, b, c, d0, d1, d2, d3, d4, d5, d6, d7) ((uuid_t){{ \
	((a) >> 24) & 255, ((a) >> 16) & 255, ((a) >> 8) & 255, (a) & 255, ((b) >> 8) & 255, (b) & 255, \
	((c) >> 8) & 255, (c) & 255, (d0), (d1), (d2), (d3), (d4), (d5), (d6), (d7) }})
static inline bool uuid_equal(const uuid_t *a, const uuid_t *b) { return !__builtin_memcmp(a, b, UUID_SIZE); }

#endif /* _PKVM_EMU_LINUX_UUID_H_ */
