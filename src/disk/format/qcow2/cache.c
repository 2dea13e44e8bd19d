/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Pages of L2 tables and refcount blocks: bounded, least recently used first out, written back. */
#include "base/bytes.h"
#include "disk/format/qcow2/qcow2.h"

#include <errno.h>
#include <string.h>

#define PAGES_MIN 16u

void qcow2_cache_init(Qcow2Cache *cache, unsigned page_size, uint64_t bytes)
{
    cache->pages = g_hash_table_new(g_int64_hash, g_int64_equal);
    cache->page_size = page_size;
    cache->max_pages = (unsigned)MAX(PAGES_MIN, bytes / page_size);
    g_cond_init(&cache->loaded);
}

static void unlink_page(Qcow2Cache *cache, Qcow2Page *page)
{
    if (page->newer)
        page->newer->older = page->older;
    else
        cache->newest = page->older;
    if (page->older)
        page->older->newer = page->newer;
    else
        cache->oldest = page->newer;
}

static void link_newest(Qcow2Cache *cache, Qcow2Page *page)
{
    page->newer = NULL;
    page->older = cache->newest;
    if (cache->newest)
        cache->newest->newer = page;
    else
        cache->oldest = page;
    cache->newest = page;
}

static void drop(Qcow2Cache *cache, Qcow2Page *page)
{
    g_hash_table_remove(cache->pages, &page->offset);
    unlink_page(cache, page);
    cache->count--;
    if (page->dirty)
        cache->dirty--;
    g_free(page->bytes);
    g_free(page);
}

void qcow2_cache_clear(Qcow2Cache *cache)
{
    if (!cache->pages)
        return;
    while (cache->newest)
        drop(cache, cache->newest);
    g_clear_pointer(&cache->pages, g_hash_table_unref);
    g_cond_clear(&cache->loaded);
}

Qcow2Page *qcow2_cache_peek(Qcow2Cache *cache, uint64_t at)
{
    uint64_t offset = align_down(at, cache->page_size);
    Qcow2Page *page = g_hash_table_lookup(cache->pages, &offset);
    if (!page || page->loading)
        return NULL;
    if (cache->newest != page) {
        unlink_page(cache, page);
        link_newest(cache, page);
    }
    return page;
}

/* Room for one more, if something clean is there to go. */
static void make_room(Qcow2Cache *cache)
{
    Qcow2Page *page = cache->oldest;
    while (page && cache->count >= cache->max_pages) {
        Qcow2Page *newer = page->newer;
        if (!page->dirty && !page->loading)
            drop(cache, page);
        page = newer;
    }
}

static Qcow2Page *new_page(Qcow2Cache *cache, uint64_t offset)
{
    make_room(cache);
    Qcow2Page *page = g_try_new0(Qcow2Page, 1);
    if (!page)
        return NULL;
    page->bytes = g_try_malloc(cache->page_size);
    if (!page->bytes) {
        g_free(page);
        return NULL;
    }
    page->offset = offset;
    page->loading = true;
    g_hash_table_insert(cache->pages, &page->offset, page);
    link_newest(cache, page);
    cache->count++;
    return page;
}

int qcow2_cache_get(Qcow2 *q, Qcow2Cache *cache, uint64_t at, Qcow2Page **out)
{
    uint64_t offset = align_down(at, cache->page_size);
    for (;;) {
        Qcow2Page *page = g_hash_table_lookup(cache->pages, &offset);
        if (page && !page->loading) {
            *out = qcow2_cache_peek(cache, at);
            return 0;
        }
        if (page) { /* another thread is reading it */
            g_cond_wait(&cache->loaded, &q->lock);
            continue;
        }
        page = new_page(cache, offset);
        if (!page)
            return -ENOMEM;
        g_mutex_unlock(&q->lock);
        int result = block_file_read(q->file, offset, page->bytes, cache->page_size);
        g_mutex_lock(&q->lock);
        page->loading = false;
        g_cond_broadcast(&cache->loaded);
        if (result < 0) {
            drop(cache, page);
            return result;
        }
        *out = page;
        return 0;
    }
}

void qcow2_cache_dirty(Qcow2Cache *cache, Qcow2Page *page)
{
    if (!page->dirty)
        cache->dirty++;
    page->dirty = true;
}

/* Some page of [start, end); those of the cache are looked at, or those of the range. */
static Qcow2Page *find_in(Qcow2Cache *cache, uint64_t start, uint64_t end, uint64_t *from)
{
    if ((end - start) / cache->page_size > cache->count) {
        for (Qcow2Page *page = cache->newest; page; page = page->older) {
            if (page->offset >= start && page->offset < end)
                return page;
        }
        return NULL;
    }
    for (; *from < end; *from += cache->page_size) {
        Qcow2Page *page = g_hash_table_lookup(cache->pages, from);
        if (page)
            return page;
    }
    return NULL;
}

void qcow2_cache_forget(Qcow2 *q, Qcow2Cache *cache, uint64_t start, uint64_t length)
{
    Qcow2Page *page;
    uint64_t from = start;
    while ((page = find_in(cache, start, start + length, &from))) {
        if (page->loading)
            g_cond_wait(&cache->loaded, &q->lock);
        else
            drop(cache, page);
    }
}

static int compare_pages(gconstpointer a, gconstpointer b)
{
    const Qcow2Page *left = *(Qcow2Page *const *)a, *right = *(Qcow2Page *const *)b;
    return left->offset < right->offset ? -1 : left->offset > right->offset;
}

int qcow2_cache_write(Qcow2 *q, Qcow2Cache *cache)
{
    g_mutex_lock(&q->lock);
    g_autoptr(GPtrArray) dirty = g_ptr_array_sized_new(cache->dirty);
    for (Qcow2Page *page = cache->newest; page; page = page->older) {
        if (page->dirty)
            g_ptr_array_add(dirty, page);
    }
    g_mutex_unlock(&q->lock);
    /* Dirty pages stay, and nobody changes them while we hold meta. */
    g_ptr_array_sort(dirty, compare_pages);
    for (guint i = 0; i < dirty->len;) {
        struct iovec iov[64];
        int n = 0;
        Qcow2Page *first = g_ptr_array_index(dirty, i);
        while (i + (guint)n < dirty->len && n < (int)G_N_ELEMENTS(iov)) {
            Qcow2Page *page = g_ptr_array_index(dirty, i + (guint)n);
            if (page->offset != first->offset + (uint64_t)n * cache->page_size)
                break;
            iov[n++] = (struct iovec){page->bytes, cache->page_size};
        }
        int result = q->file->ops->writev(q->file, first->offset, iov, n);
        if (result < 0)
            return result;
        g_mutex_lock(&q->lock);
        for (int k = 0; k < n; k++) {
            Qcow2Page *page = g_ptr_array_index(dirty, i + (guint)k);
            page->dirty = false;
            cache->dirty--;
        }
        g_mutex_unlock(&q->lock);
        i += (guint)n;
    }
    return 0;
}
