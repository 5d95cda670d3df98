/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel's own events are not for modules: a module names its file in HYP_EVENT_FILE. */
