/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_IOCTL_H_
#define _PKVM_EMU_LINUX_IOCTL_H_

/* direction [31:30], size [29:16], type [15:8], number [7:0] (include/uapi/asm-generic/ioctl.h) */
#define _IOC_NONE	0U
#define _IOC_WRITE	1U
#define _IOC_READ	2U
#define _IOC(dir, type, nr, size) \
	(((dir) << 30) | ((unsigned int)(size) << 16) | ((unsigned int)(type) << 8) | (unsigned int)(nr))
#define _IO(type, nr)		_IOC(_IOC_NONE, type, nr, 0)
#define _IOR(type, nr, what)	_IOC(_IOC_READ, type, nr, sizeof(what))
#define _IOW(type, nr, what)	_IOC(_IOC_WRITE, type, nr, sizeof(what))
#define _IOWR(type, nr, what)	_IOC(_IOC_READ | _IOC_WRITE, type, nr, sizeof(what))
#define _IOC_DIR(nr)		(((nr) >> 30) & 3)
#define _IOC_SIZE(nr)		(((nr) >> 16) & 0x3fff)
#define _IOC_TYPE(nr)		(((nr) >> 8) & 0xff)
#define _IOC_NR(nr)		((nr) & 0xff)

#endif /* _PKVM_EMU_LINUX_IOCTL_H_ */
