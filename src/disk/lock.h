/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Locks on image files as QEMU takes them, so that Lodge and QEMU refuse each other's image in
 * use. Open-file-description locks on single bytes: byte 100+i is share-locked by whoever uses
 * permission i, byte 200+i by whoever does not let others use it. Observed from QEMU 7.2.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

enum {
    BLOCK_LOCK_CONSISTENT_READ = 1 << 0,
    BLOCK_LOCK_WRITE = 1 << 1,
    BLOCK_LOCK_WRITE_UNCHANGED = 1 << 2,
    BLOCK_LOCK_RESIZE = 1 << 3,
};

/*
 * Takes @used for us and forbids @forbidden to others, on the open file @fd; nothing is held on
 * failure (LODGE_ERROR_BUSY names @path).
 * The locks go with the last descriptor of this open file description.
 */
bool block_lock(int fd, const char *path, unsigned used, unsigned forbidden, GError **err);

/*
 * Forbids others also to read, until block_lock_readers: while keys change. False when somebody
 * reads now.
 */
bool block_lock_no_readers(int fd, const char *path, GError **err);
void block_lock_readers(int fd);

/* "process 412 (qemu-io)": who else holds @byte of @fd's file; NULL when it cannot be found. Free it. */
char *block_lock_holder(int fd, unsigned byte);

/* Between QEMU's words for a held lock and who holds it; a tool that must say no more cuts here. */
#define BLOCK_LOCK_HOLDER_WORDS " It is "
