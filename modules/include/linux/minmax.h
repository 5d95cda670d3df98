/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_MINMAX_H_
#define _PKVM_EMU_LINUX_MINMAX_H_

/* Both arguments are evaluated once and must have one type; the _t forms convert first. */
#define _pkvm_emu_least(a, b, x, y) \
	({ typeof(a) x = (a); typeof(b) y = (b); (void)(&x == (typeof(x) *)&y); x < y ? x : y; })
#define _pkvm_emu_most(a, b, x, y) \
	({ typeof(a) x = (a); typeof(b) y = (b); (void)(&x == (typeof(x) *)&y); x > y ? x : y; })
#define min(a, b)		_pkvm_emu_least(a, b, __UNIQUE_ID(min_a), __UNIQUE_ID(min_b))
#define max(a, b)		_pkvm_emu_most(a, b, __UNIQUE_ID(max_a), __UNIQUE_ID(max_b))
#define min_t(type, a, b)	min((type)(a), (type)(b))
#define max_t(type, a, b)	max((type)(a), (type)(b))
#define min3(a, b, c)		min((typeof(a))min(a, b), c)
#define max3(a, b, c)		max((typeof(a))max(a, b), c)
#define clamp(val, lo, hi)	min((typeof(val))max(val, lo), hi)
#define clamp_t(type, val, lo, hi) min_t(type, max_t(type, val, lo), hi)
#define swap(a, b)		do { typeof(a) swapped_ = (a); (a) = (b); (b) = swapped_; } while (0)

#endif /* _PKVM_EMU_LINUX_MINMAX_H_ */
