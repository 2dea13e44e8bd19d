/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Errors of the control path: one GError domain, one enum, mapped to
 * virErrorNumber and to QMP's error classes at the edges.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>

typedef enum LodgeErrorCode {
    LODGE_ERROR_INTERNAL,    /* a bug of ours */
    LODGE_ERROR_INVALID,     /* an argument or option that cannot be meant */
    LODGE_ERROR_XML,         /* a document that is not well formed or not valid */
    LODGE_ERROR_UNSUPPORTED, /* well formed, but not something Lodge does */
    LODGE_ERROR_NOT_FOUND,   /* the named object does not exist */
    LODGE_ERROR_EXISTS,      /* the named object exists already */
    LODGE_ERROR_BUSY,        /* in use by somebody else */
    LODGE_ERROR_STATE,       /* not in this state of the object */
    LODGE_ERROR_IO,          /* the operating system refused */
    LODGE_ERROR_CORRUPT,     /* an image or stream whose content contradicts itself */
    LODGE_ERROR_LIMIT,       /* over a named limit */
    LODGE_ERROR_DENIED,      /* not allowed to this user */
    LODGE_ERROR_TIMEOUT,
    LODGE_ERROR_CANCELLED,
} LodgeErrorCode;

#define LODGE_ERROR (lodge_error_quark())
GQuark lodge_error_quark(void);

/*
 * Sets @err to @code and the formatted message, and returns false, so that a
 * failing function can end with `return lodge_fail(err, ...)`. Any thread.
 */
bool lodge_fail(GError **err, LodgeErrorCode code, const char *format, ...) G_GNUC_PRINTF(3, 4);

/*
 * Like lodge_fail, for a failed system call: appends ": <strerror(errnum)>" and picks
 * the code from @errnum (a positive errno: ENOENT -> NOT_FOUND, EACCES -> DENIED, ...).
 */
bool lodge_fail_errno(GError **err, int errnum, const char *format, ...) G_GNUC_PRINTF(3, 4);
