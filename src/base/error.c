/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/error.h"

#include <errno.h>
#include <stdarg.h>

G_DEFINE_QUARK(lodge - error - quark, lodge_error)

bool lodge_fail(GError **err, LodgeErrorCode code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error_literal(err, LODGE_ERROR, code, text);
    return false;
}

static LodgeErrorCode code_of_errno(int errnum)
{
    switch (errnum) {
    case ENOENT:
    case ENODEV:
    case ENXIO:
        return LODGE_ERROR_NOT_FOUND;
    case EEXIST:
        return LODGE_ERROR_EXISTS;
    case EACCES:
    case EPERM:
    case EROFS:
        return LODGE_ERROR_DENIED;
    case EBUSY:
    case EAGAIN:
    case ETXTBSY:
        return LODGE_ERROR_BUSY;
    case EINVAL:
        return LODGE_ERROR_INVALID;
    case ENOTSUP:
    case ENOSYS:
        return LODGE_ERROR_UNSUPPORTED;
    case ETIMEDOUT:
        return LODGE_ERROR_TIMEOUT;
    case ECANCELED:
        return LODGE_ERROR_CANCELLED;
    default:
        return LODGE_ERROR_IO;
    }
}

bool lodge_fail_errno(GError **err, int errnum, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error(err, LODGE_ERROR, code_of_errno(errnum), "%s: %s", text, g_strerror(errnum));
    return false;
}
