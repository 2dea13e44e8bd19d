/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The NBD protocol's numbers, and its fixed-size messages as bytes: the NetworkBlockDevice
 * project's doc/proto.md. Everything on the wire is big-endian.
 */
#pragma once

#include "base/bytes.h"

#define NBD_PORT "10809"

/* Handshake ("Newstyle negotiation"). */
#define NBD_INIT_MAGIC     UINT64_C(0x4e42444d41474943) /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC   UINT64_C(0x49484156454f5054) /* "IHAVEOPT" */
#define NBD_OLDSTYLE_MAGIC UINT64_C(0x0000420281861253)
#define NBD_REPLY_MAGIC    UINT64_C(0x0003e889045565a9)

enum { NBD_HANDSHAKE_FIXED = 1 << 0, NBD_HANDSHAKE_NO_ZEROES = 1 << 1 };

enum NbdOption {
    NBD_OPT_EXPORT_NAME = 1,
    NBD_OPT_ABORT = 2,
    NBD_OPT_LIST = 3,
    NBD_OPT_STARTTLS = 5,
    NBD_OPT_INFO = 6,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED_REPLY = 8,
    NBD_OPT_LIST_META_CONTEXT = 9,
    NBD_OPT_SET_META_CONTEXT = 10,
};

#define NBD_REP_ERROR(n)       ((UINT32_C(1) << 31) + (n))
#define NBD_REP_ACK            UINT32_C(1)
#define NBD_REP_SERVER         UINT32_C(2)
#define NBD_REP_INFO           UINT32_C(3)
#define NBD_REP_META_CONTEXT   UINT32_C(4)
#define NBD_REP_ERR_UNSUP      NBD_REP_ERROR(1)
#define NBD_REP_ERR_POLICY     NBD_REP_ERROR(2)
#define NBD_REP_ERR_INVALID    NBD_REP_ERROR(3)
#define NBD_REP_ERR_PLATFORM   NBD_REP_ERROR(4)
#define NBD_REP_ERR_TLS_REQD   NBD_REP_ERROR(5)
#define NBD_REP_ERR_UNKNOWN    NBD_REP_ERROR(6)
#define NBD_REP_ERR_SHUTDOWN   NBD_REP_ERROR(7)
#define NBD_REP_ERR_BLOCK_SIZE NBD_REP_ERROR(8)
#define NBD_REP_ERR_TOO_BIG    NBD_REP_ERROR(9)

enum NbdInfo {
    NBD_INFO_EXPORT = 0,
    NBD_INFO_NAME = 1,
    NBD_INFO_DESCRIPTION = 2,
    NBD_INFO_BLOCK_SIZE = 3,
};

/* Transmission flags. */
enum {
    NBD_FLAG_HAS_FLAGS = 1 << 0,
    NBD_FLAG_READ_ONLY = 1 << 1,
    NBD_FLAG_FLUSH = 1 << 2,
    NBD_FLAG_FUA = 1 << 3,
    NBD_FLAG_ROTATIONAL = 1 << 4,
    NBD_FLAG_TRIM = 1 << 5,
    NBD_FLAG_WRITE_ZEROES = 1 << 6,
    NBD_FLAG_DF = 1 << 7,
    NBD_FLAG_MULTI_CONN = 1 << 8,
    NBD_FLAG_RESIZE = 1 << 9,
    NBD_FLAG_CACHE = 1 << 10,
    NBD_FLAG_FAST_ZERO = 1 << 11,
};

/* Transmission. */
#define NBD_REQUEST_MAGIC    UINT32_C(0x25609513)
#define NBD_SIMPLE_MAGIC     UINT32_C(0x67446698)
#define NBD_STRUCTURED_MAGIC UINT32_C(0x668e33ef)

enum NbdCommand {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
};

enum {
    NBD_CMD_FLAG_FUA = 1 << 0,
    NBD_CMD_FLAG_NO_HOLE = 1 << 1,
    NBD_CMD_FLAG_DF = 1 << 2,
    NBD_CMD_FLAG_REQ_ONE = 1 << 3,
    NBD_CMD_FLAG_FAST_ZERO = 1 << 4,
};

enum { NBD_CHUNK_DONE = 1 << 0 }; /* flag of the last chunk of a reply */

enum NbdChunkType {
    NBD_CHUNK_NONE = 0,
    NBD_CHUNK_DATA = 1,
    NBD_CHUNK_HOLE = 2,
    NBD_CHUNK_STATUS = 5,
    NBD_CHUNK_ERROR = 32769,
    NBD_CHUNK_ERROR_OFFSET = 32770,
};

/* Extents of "base:allocation", and of "qemu:dirty-bitmap:NAME". */
enum { NBD_STATE_HOLE = 1 << 0, NBD_STATE_ZERO = 1 << 1, NBD_STATE_DIRTY = 1 << 0 };

#define NBD_CONTEXT_ALLOCATION "base:allocation"
#define NBD_CONTEXT_DEPTH      "qemu:allocation-depth"
#define NBD_CONTEXT_BITMAP     "qemu:dirty-bitmap:" /* and the bitmap's name */

/* Errors in replies. */
enum {
    NBD_EPERM = 1,
    NBD_EIO = 5,
    NBD_ENOMEM = 12,
    NBD_EINVAL = 22,
    NBD_ENOSPC = 28,
    NBD_EOVERFLOW = 75,
    NBD_ENOTSUP = 95,
    NBD_ESHUTDOWN = 108,
};

#define NBD_STRING_MAX  4096u   /* a name or a description, by the specification */
#define NBD_REQUEST_MAX MIB(32) /* bytes of one read or write, by the specification's default */

/* ---- fixed-size messages */

#define NBD_OPTION_SIZE       16u
#define NBD_OPTION_REPLY_SIZE 20u
#define NBD_REQUEST_SIZE      28u
#define NBD_SIMPLE_SIZE       16u
#define NBD_CHUNK_SIZE        20u

typedef struct NbdOptionReply {
    uint32_t option, type, length;
} NbdOptionReply;

typedef struct NbdRequest {
    uint16_t flags, type;
    uint64_t cookie, offset;
    uint32_t length;
} NbdRequest;

typedef struct NbdChunk {
    uint16_t flags, type;
    uint64_t cookie;
    uint32_t length;
} NbdChunk;

static inline void nbd_option_put(uint8_t *p, uint32_t option, uint32_t length)
{
    be64_put(p, NBD_OPTION_MAGIC);
    be32_put(p + 8, option);
    be32_put(p + 12, length);
}

static inline void nbd_option_reply_put(uint8_t *p, uint32_t option, uint32_t type, uint32_t length)
{
    be64_put(p, NBD_REPLY_MAGIC);
    be32_put(p + 8, option);
    be32_put(p + 12, type);
    be32_put(p + 16, length);
}

/* False: not such a message. */
static inline bool nbd_option_reply_get(const uint8_t *p, NbdOptionReply *reply)
{
    *reply = (NbdOptionReply){be32_get(p + 8), be32_get(p + 12), be32_get(p + 16)};
    return be64_get(p) == NBD_REPLY_MAGIC;
}

static inline void nbd_request_put(uint8_t *p, const NbdRequest *request)
{
    be32_put(p, NBD_REQUEST_MAGIC);
    be16_put(p + 4, request->flags);
    be16_put(p + 6, request->type);
    be64_put(p + 8, request->cookie);
    be64_put(p + 16, request->offset);
    be32_put(p + 24, request->length);
}

static inline bool nbd_request_get(const uint8_t *p, NbdRequest *request)
{
    *request = (NbdRequest){be16_get(p + 4), be16_get(p + 6), be64_get(p + 8), be64_get(p + 16),
                            be32_get(p + 24)};
    return be32_get(p) == NBD_REQUEST_MAGIC;
}

static inline void nbd_simple_put(uint8_t *p, uint32_t error, uint64_t cookie)
{
    be32_put(p, NBD_SIMPLE_MAGIC);
    be32_put(p + 4, error);
    be64_put(p + 8, cookie);
}

static inline void nbd_chunk_put(uint8_t *p, const NbdChunk *chunk)
{
    be32_put(p, NBD_STRUCTURED_MAGIC);
    be16_put(p + 4, chunk->flags);
    be16_put(p + 6, chunk->type);
    be64_put(p + 8, chunk->cookie);
    be32_put(p + 16, chunk->length);
}

static inline NbdChunk nbd_chunk_get(const uint8_t *p)
{
    return (NbdChunk){be16_get(p + 4), be16_get(p + 6), be64_get(p + 8), be32_get(p + 16)};
}

/* "go" of option 7, for messages. */
static inline const char *nbd_option_name(uint32_t option)
{
    static const char *const names[] = {
        [NBD_OPT_EXPORT_NAME] = "export name",
        [NBD_OPT_ABORT] = "abort",
        [NBD_OPT_LIST] = "list",
        [NBD_OPT_STARTTLS] = "starttls",
        [NBD_OPT_INFO] = "info",
        [NBD_OPT_GO] = "go",
        [NBD_OPT_STRUCTURED_REPLY] = "structured reply",
        [NBD_OPT_LIST_META_CONTEXT] = "list meta context",
        [NBD_OPT_SET_META_CONTEXT] = "set meta context",
    };
    bool known = option < sizeof(names) / sizeof(names[0]) && names[option];
    return known ? names[option] : "<unknown>";
}

uint32_t nbd_error_put(int result);     /* 0 or -errno to the wire's number */
int nbd_error_get(uint32_t wire_error); /* the other way round */
