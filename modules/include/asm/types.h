/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_TYPES_H_
#define _PKVM_EMU_ASM_TYPES_H_

typedef unsigned char		__u8;
typedef unsigned short		__u16;
typedef unsigned int		__u32;
typedef unsigned long long	__u64;
typedef signed char		__s8;
typedef short			__s16;
typedef int			__s32;
typedef long long		__s64;

typedef __u8			u8;
typedef __u16			u16;
typedef __u32			u32;
typedef __u64			u64;
typedef __s8			s8;
typedef __s16			s16;
typedef __s32			s32;
typedef __s64			s64;

#endif /* _PKVM_EMU_ASM_TYPES_H_ */
