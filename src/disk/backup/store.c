/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The folder: making it, its lock, its settings, the list of its backups. */
#include "base/error.h"
#include "disk/backup/internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define SETTINGS     "lodge-store.json"
#define FORMAT       1
#define SETTINGS_MAX 4096u

bool backup_name_valid(const char *name, GError **err)
{
    size_t length = strlen(name);
    bool valid = length > 0 && length <= BACKUP_NAME_MAX && name[0] != '.' && name[0] != '-';
    for (size_t i = 0; i < length && valid; i++)
        valid = g_ascii_isalnum(name[i]) || strchr("._-", name[i]);
    return valid || lodge_fail(err, LODGE_ERROR_INVALID,
                               "'%s' is no name for a backup: letters, digits, '.', '_' and '-', "
                               "at most %u, are",
                               name, BACKUP_NAME_MAX);
}

static bool write_all(int fd, const void *data, size_t length)
{
    const char *at = data;
    while (length > 0) {
        ssize_t n = write(fd, at, length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return false;
        at += n;
        length -= (size_t)n;
    }
    return true;
}

bool backup_write_file(BackupStore *store, const char *name, const void *data, size_t length,
                       GError **err)
{
    g_autofree char *temporary = g_strconcat(name, ".tmp", NULL);
    int fd = openat(store->folder, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return lodge_fail_errno(err, errno, "%s: cannot create %s", store->path, temporary);
    bool ok = write_all(fd, data, length) && fsync(fd) == 0 &&
              renameat(store->folder, temporary, store->folder, name) == 0 &&
              fsync(store->folder) == 0;
    int problem = errno;
    close(fd);
    if (ok)
        return true;
    unlinkat(store->folder, temporary, 0);
    return lodge_fail_errno(err, problem, "%s: cannot write %s", store->path, name);
}

static bool is_empty(const char *path)
{
    g_autoptr(GDir) folder = g_dir_open(path, 0, NULL);
    return folder && !g_dir_read_name(folder);
}

bool backup_store_create(const char *path, uint32_t chunk, GError **err)
{
    if (chunk < BACKUP_CHUNK_MIN || chunk > BACKUP_CHUNK_MAX || (chunk & (chunk - 1)))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "a chunk size of %u is not supported; powers of two from %u to %u are",
                          chunk, BACKUP_CHUNK_MIN, BACKUP_CHUNK_MAX);
    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return lodge_fail_errno(err, errno, "%s: cannot make the store's folder", path);
    if (!is_empty(path))
        return lodge_fail(err, LODGE_ERROR_EXISTS,
                          "%s: not an empty folder; a new store needs one", path);
    g_autofree char *packs = g_build_filename(path, "packs", NULL);
    g_autofree char *backups = g_build_filename(path, "backups", NULL);
    if (mkdir(packs, 0700) < 0 || mkdir(backups, 0700) < 0)
        return lodge_fail_errno(err, errno, "%s: cannot make its folders", path);
    BackupStore store = {.path = (char *)path, .folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    if (store.folder < 0)
        return lodge_fail_errno(err, errno, "%s: cannot open the store's folder", path);
    g_autofree char *text = g_strdup_printf(
        "{\"format\": %d, \"hash\": \"sha256\", \"chunk-size\": %u}\n", FORMAT, chunk);
    bool ok = backup_write_file(&store, SETTINGS, text, strlen(text), err);
    close(store.folder);
    return ok;
}

static bool read_settings(BackupStore *store, GError **err)
{
    char text[SETTINGS_MAX + 1];
    int fd = openat(store->folder, SETTINGS, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    ssize_t length = fd < 0 ? -1 : read(fd, text, SETTINGS_MAX);
    int problem = errno;
    if (fd >= 0)
        close(fd);
    if (length < 0)
        return lodge_fail_errno(err, problem, "%s: no store of backups (%s)", store->path, SETTINGS);
    json_auto_t *settings = json_loadb(text, (size_t)length, 0, NULL);
    json_int_t format = json_integer_value(json_object_get(settings, "format"));
    json_int_t chunk = json_integer_value(json_object_get(settings, "chunk-size"));
    const char *hash = json_string_value(json_object_get(settings, "hash"));
    if (!settings || format != FORMAT || g_strcmp0(hash, "sha256"))
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: a store of a kind that is not known here", store->path);
    if (chunk < (json_int_t)BACKUP_CHUNK_MIN || chunk > (json_int_t)BACKUP_CHUNK_MAX ||
        (chunk & (chunk - 1)))
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: a chunk size of %" JSON_INTEGER_FORMAT, store->path, chunk);
    store->chunk = (uint32_t)chunk;
    return true;
}

BackupStore *backup_store_open(const char *path, bool write, GError **err)
{
    g_autoptr(BackupStore) store = g_new0(BackupStore, 1);
    store->path = g_strdup(path);
    store->write = write;
    store->packs = g_ptr_array_new_with_free_func((GDestroyNotify)backup_pack_free);
    store->folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (store->folder < 0) {
        lodge_fail_errno(err, errno, "%s: cannot open the store", path);
        return NULL;
    }
    if (write && flock(store->folder, LOCK_EX | LOCK_NB) < 0) {
        lodge_fail(err, LODGE_ERROR_BUSY,
                   "%s: another backup is being written to this store; wait for it to end", path);
        return NULL;
    }
    if (!read_settings(store, err) || !backup_packs_load(store, err))
        return NULL;
    return g_steal_pointer(&store);
}

void backup_store_free(BackupStore *store)
{
    if (!store)
        return;
    g_ptr_array_unref(store->packs);
    g_free(store->table);
    if (store->folder >= 0)
        close(store->folder);
    g_free(store->path);
    g_free(store);
}

static int compare_names(gconstpointer a, gconstpointer b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

GPtrArray *backup_list(BackupStore *store, GError **err)
{
    g_autofree char *path = g_build_filename(store->path, "backups", NULL);
    g_autoptr(GDir) folder = g_dir_open(path, 0, NULL);
    if (!folder) {
        lodge_fail_errno(err, errno, "%s: cannot read the list of backups", store->path);
        return NULL;
    }
    GPtrArray *names = g_ptr_array_new_with_free_func(g_free);
    const char *file;
    while ((file = g_dir_read_name(folder))) {
        if (!g_str_has_suffix(file, ".backup"))
            continue;
        g_autofree char *name = g_strndup(file, strlen(file) - strlen(".backup"));
        if (backup_name_valid(name, NULL))
            g_ptr_array_add(names, g_steal_pointer(&name));
    }
    g_ptr_array_sort(names, compare_names);
    return names;
}

bool backup_delete(BackupStore *store, const char *name, GError **err)
{
    if (!backup_name_valid(name, err))
        return false;
    g_autofree char *file = g_strdup_printf("backups/%s.backup", name);
    if (unlinkat(store->folder, file, 0) < 0)
        return lodge_fail_errno(err, errno, "%s: cannot delete the backup '%s'", store->path, name);
    return true;
}
