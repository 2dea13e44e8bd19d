/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* libfuse3, loaded when something is mounted: whoever does not mount does not need it. */
#pragma once

#define FUSE_USE_VERSION 35
#include <fuse_lowlevel.h>
#include <glib.h>

/* Name without fuse_, result, arguments. */
#define FUSE_FUNCTIONS(X)                                                                          \
    X(opt_free_args, void, (struct fuse_args *))                                                   \
    X(session_new, struct fuse_session *,                                                          \
      (struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, void *))                      \
    X(session_mount, int, (struct fuse_session *, const char *))                                   \
    X(session_unmount, void, (struct fuse_session *))                                              \
    X(session_destroy, void, (struct fuse_session *))                                              \
    X(session_exit, void, (struct fuse_session *))                                                 \
    X(session_exited, int, (struct fuse_session *))                                                \
    X(session_receive_buf, int, (struct fuse_session *, struct fuse_buf *))                        \
    X(session_process_buf, void, (struct fuse_session *, const struct fuse_buf *))                 \
    X(req_userdata, void *, (fuse_req_t))                                                          \
    X(reply_err, int, (fuse_req_t, int))                                                           \
    X(reply_entry, int, (fuse_req_t, const struct fuse_entry_param *))                             \
    X(reply_attr, int, (fuse_req_t, const struct stat *, double))                                  \
    X(reply_open, int, (fuse_req_t, const struct fuse_file_info *))                                \
    X(reply_write, int, (fuse_req_t, size_t))                                                      \
    X(reply_buf, int, (fuse_req_t, const char *, size_t))                                          \
    X(reply_lseek, int, (fuse_req_t, off_t))                                                       \
    X(reply_statfs, int, (fuse_req_t, const struct statvfs *))                                     \
    X(add_direntry, size_t, (fuse_req_t, char *, size_t, const char *, const struct stat *, off_t))

typedef struct FuseLibrary {
#define FUSE_FIELD(name, result, arguments) result(*name) arguments;
    FUSE_FUNCTIONS(FUSE_FIELD)
#undef FUSE_FIELD
} FuseLibrary;

/* Loaded once, for good; NULL with @err. */
const FuseLibrary *fuse_library(GError **err);
