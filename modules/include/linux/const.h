/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_CONST_H_
#define _PKVM_EMU_LINUX_CONST_H_

#ifdef __ASSEMBLY__
#define _AC(number, suffix)	number
#define _AT(type, number)	number
#else
#define _AC_PASTE(number, suffix)	number##suffix
#define _AC(number, suffix)	_AC_PASTE(number, suffix)
#define _AT(type, number)	((type)(number))
#endif
#define _UL(number)	_AC(number, UL)
#define _ULL(number)	_AC(number, ULL)
#define UL(number)	_UL(number)
#define ULL(number)	_ULL(number)
#define _BITUL(n)	(_UL(1) << (n))
#define _BITULL(n)	(_ULL(1) << (n))

#endif /* _PKVM_EMU_LINUX_CONST_H_ */
