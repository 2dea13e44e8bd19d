/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* For tests and fuzzing: a file in memory, which can note down what is done to it. */
#pragma once

#include "disk/transport/file.h"

typedef enum MemoryOp { MEMORY_WRITE, MEMORY_ZERO, MEMORY_TRUNCATE, MEMORY_FLUSH } MemoryOp;

typedef struct MemoryEntry {
    MemoryOp op;
    uint64_t offset, length;
    uint8_t *data; /* MEMORY_WRITE: owned */
} MemoryEntry;

typedef struct MemoryFile {
    BlockFile file; /* first, so that one can be taken for the other */
    GByteArray *bytes;
    uint64_t limit; /* writing past it fails with -ENOSPC */
    GArray *log;    /* MemoryEntry; NULL: not noted */
    uint64_t fail_from, fail_until; /* operations of these numbers fail with -EIO */
    uint64_t operations;
    GMutex lock;
} MemoryFile;

/* @bytes: a reference is taken. The file goes with block_file_close. */
MemoryFile *memory_file_new(GByteArray *bytes, uint64_t limit, GArray *log);
/* Does what @entry says to @bytes; sectors for which @keep says no are left out. */
void memory_entry_apply(const MemoryEntry *entry, GByteArray *bytes,
                        bool (*keep)(void *opaque), void *opaque);
void memory_log_free(GArray *log);
