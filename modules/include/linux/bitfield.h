/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_BITFIELD_H_
#define _PKVM_EMU_LINUX_BITFIELD_H_

#include <linux/build_bug.h>
#include <linux/types.h>

#define __bf_shf(mask)		(__builtin_ffsll(mask) - 1)
#define FIELD_MAX(mask)		((typeof(mask))((mask) >> __bf_shf(mask)))
#define FIELD_FIT(mask, val)	(!((((typeof(mask))(val)) << __bf_shf(mask)) & ~(mask)))
#define FIELD_PREP(mask, val)	(((typeof(mask))(val) << __bf_shf(mask)) & (mask))
#define FIELD_GET(mask, reg)	((typeof(mask))(((reg) & (mask)) >> __bf_shf(mask)))

#endif /* _PKVM_EMU_LINUX_BITFIELD_H_ */
