/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disk/fuse/library.h"

#include "base/error.h"

#include <dlfcn.h>

static FuseLibrary library;

static gpointer load(gpointer data)
{
    char **why = data;
    void *handle = dlopen("libfuse3.so.3", RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        const char *reason = dlerror();
        *why = g_strdup(reason ? reason : "no reason given");
        return NULL;
    }
    static const struct {
        const char *name;
        void **place;
    } functions[] = {
#define FUSE_ROW(name, result, arguments) {"fuse_" #name, (void **)&library.name},
        FUSE_FUNCTIONS(FUSE_ROW)
#undef FUSE_ROW
    };
    for (size_t i = 0; i < G_N_ELEMENTS(functions); i++) {
        *functions[i].place = dlsym(handle, functions[i].name);
        if (!*functions[i].place) {
            *why = g_strdup_printf("it has no function %s", functions[i].name);
            dlclose(handle);
            return NULL;
        }
    }
    return &library;
}

const FuseLibrary *fuse_library(GError **err)
{
    static GOnce once = G_ONCE_INIT;
    static char *why;
    const FuseLibrary *loaded = g_once(&once, load, &why);
    if (!loaded)
        lodge_fail(err, LODGE_ERROR_NOT_FOUND,
                   "libfuse3 cannot be loaded: %s (install the Debian package libfuse3-3)", why);
    return loaded;
}
