/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The code cache of a vCPU: an arena mapped twice, writable and executable, never both at one address;
 * pages and blocks of code, found by hash. When the arena is full everything is forgotten at once,
 * which takes microseconds; what is needed comes back as it is executed.
 */
#include "vcpu/soft/translate/cache.h"

#include <cpuid.h>
#include <errno.h>
#include <sys/mman.h>
#include <x86intrin.h>

#include "base/error.h"

#define ARENA_MIN (1u << 20)
#define ARENA_MAX (1u << 30)
#define PAGE_HASH 4096u

static unsigned page_hash(uint64_t va, uint32_t key)
{
    return (unsigned)((va >> 12) ^ (va >> 24) ^ key) % PAGE_HASH;
}

static unsigned chain_of(uint64_t rip)
{
    return (unsigned)(rip ^ rip >> 4 ^ rip >> 8) % CODE_PAGE_CHAINS;
}

void *code_record(CodeCache *c, size_t size)
{
    size = (size + 7) & ~(size_t)7;
    if (code_room(c) < size)
        return NULL;
    c->records -= (uint32_t)size;
    return c->rw + c->records;
}

SoftOp *code_op_copy(CodeCache *c, const SoftOp *op)
{
    SoftOp *copy = code_record(c, 2 * sizeof(*copy));

    copy[0] = *op;
    copy[1] = (SoftOp){.handler = soft_op_stop, .rip = translate_next_rip(op)};
    return copy;
}

/* ---- forgetting ---- */

/* The first one only sets up. */
static void account(SoftCpu *cpu, uint64_t ticks)
{
    uint64_t ns = (uint64_t)((unsigned __int128)ticks * 1000000u / vcpu_host_tsc_khz());
    if (cpu->code->flushes++ == 0)
        return;
    vcpu_count(&cpu->stats.code_cache_evictions, 1);
    if (ns > cpu->stats.code_cache_pause_ns)
        vcpu_count_set(&cpu->stats.code_cache_pause_ns, ns);
}

void code_cache_flush(SoftCpu *cpu)
{
    CodeCache *c = cpu->code;
    uint64_t start = __rdtsc();
    memset(c->pages, 0, sizeof(c->pages));
    memset(c->front, 0, sizeof(c->front));
    for (unsigned i = 0; i < SOFT_JUMPS; i++)
        cpu->jump[i] = code_rx(c, c->thunk.miss);
    soft_fetch_ids_forget(cpu);
    c->used = c->start;
    c->records = c->size;
    c->n_mirrored = 0;
    c->first_id = c->next_id;
    c->since_flush = 0;
    /* New code will come where old was executed: a serializing instruction (SDM vol. 3 9.1.3). */
    unsigned a, b, x, d;
    __cpuid(0, a, b, x, d);
    account(cpu, __rdtsc() - start);
}

void code_pages_check(SoftCpu *cpu)
{
    CodeCache *c = cpu->code;
    uint32_t epoch = atomic_load_explicit(&soft_code_epoch, memory_order_acquire);
    if (epoch == c->code_epoch)
        return;
    c->code_epoch = epoch;
    for (unsigned user = 0; user < 2; user++)
        for (unsigned slot = 0; slot < SOFT_FETCH_IDS; slot++) {
            uint32_t id = cpu->fetch_ids[user][slot];
            if (!id)
                continue;
            const CodePage *p = c->by_id[id - c->first_id];
            if (p->generation != soft_page_generation(soft_vm(cpu), p->gpa))
                cpu->fetch_ids[user][slot] = 0;
        }
}

/* ---- pages ---- */

static CodePage *page_new(SoftCpu *cpu, CodePage **slot, uint64_t va, uint64_t gpa, uint32_t key)
{
    CodeCache *c = cpu->code;
    CodePage *p = c->next_id - c->first_id < c->ids_max ? code_record(c, sizeof(*p)) : NULL;
    if (!p) {
        code_cache_flush(cpu);
        p = code_record(c, sizeof(*p));
    }
    *p = (CodePage){.next = *slot, .va = va, .gpa = gpa, .key = key, .id = c->next_id++};
    p->generation = soft_page_protect(cpu, gpa);
    c->by_id[p->id - c->first_id] = p;
    *slot = p;
    return p;
}

CodePage *code_page_get(SoftCpu *cpu, uint64_t va, uint64_t gpa, uint32_t key)
{
    CodeCache *c = cpu->code;
    CodePage **slot = &c->pages[page_hash(va, key)], *p;
    for (CodePage **at = slot; (p = *at);) {
        if (p->va == va && p->gpa == gpa && p->key == key) {
            if (p->generation == soft_page_generation(soft_vm(cpu), gpa))
                break;
            *at = p->next; /* written since: nothing leads to its blocks any more */
            continue;
        }
        at = &p->next;
    }
    if (!p)
        p = page_new(cpu, slot, va, gpa, key);
    soft_fetch_id_set(cpu, va, (key & SOFT_MODE_USER) != 0, p->id);
    return p;
}

/* ---- blocks ---- */

CodeBlock *code_block_find(const CodePage *page, uint64_t rip)
{
    for (CodeBlock *b = page->block[chain_of(rip)]; b; b = b->next)
        if (b->rip == rip)
            return b;
    return NULL;
}

void code_block_add(CodeCache *c, CodeBlock *b)
{
    CodeBlock **slot = &b->page->block[chain_of(b->rip)];
    b->next = *slot;
    *slot = b;
    c->since_flush++;
}

void code_block_drop(CodeCache *c, CodeBlock *b)
{
    for (CodeBlock **at = &b->page->block[chain_of(b->rip)]; *at; at = &(*at)->next)
        if (*at == b) {
            *at = b->next;
            break;
        }
    code_front(c, b->rip)->id = 0;
}

/* ---- lifetime ---- */

/*
 * Shared anonymous memory, mapped a second time by mremap with an old size of 0 (mremap(2)); perf(1) looks into
 * a perf map for the addresses of such mappings, but not for those of a memfd.
 */
static bool arena_map(CodeCache *c, GError **err)
{
    c->rw = mmap(NULL, c->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (c->rw == MAP_FAILED)
        return lodge_fail_errno(err, errno, "cannot map a code cache of %u bytes", c->size);
    void *rx = mremap(c->rw, 0, c->size, MREMAP_MAYMOVE);
    c->rx = rx;
    if (rx == MAP_FAILED || mprotect(rx, c->size, PROT_READ | PROT_EXEC) < 0)
        return lodge_fail_errno(err, errno, "cannot make a code cache of %u bytes executable", c->size);
    return true;
}

bool code_cache_init(SoftCpu *cpu, uint64_t size, GError **err)
{
    CodeCache *c = mmap(NULL, sizeof(*c), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (c == MAP_FAILED)
        return lodge_fail_errno(err, ENOMEM, "no memory for a code cache's index");
    cpu->code = c;
    c->rw = MAP_FAILED;
    c->rx = MAP_FAILED;
    c->mirrored = MAP_FAILED;
    c->size = (uint32_t)CLAMP(size, ARENA_MIN, ARENA_MAX) & ~4095u;
    cpu->stats.code_cache_size = c->size;
    c->ids_max = c->size / 2048;
    c->by_id = g_try_new0(CodePage *, c->ids_max);
    c->translation = g_try_new0(Translation, 1);
    if (!c->by_id || !c->translation)
        return lodge_fail_errno(err, ENOMEM, "no memory for a code cache's index");
    if (!arena_map(c, err))
        return false;
    c->mirrored_max = c->size / 32;
    c->mirrored = mmap(NULL, c->mirrored_max * sizeof(*c->mirrored), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (c->mirrored == MAP_FAILED)
        return lodge_fail_errno(err, ENOMEM, "no memory for a code cache's index");
    c->next_id = 1;
    const VcpuTuning *tuning = &cpu->vcpu.vm->config.tuning;
    c->ops_max = tuning->block_ops ? tuning->block_ops : TRANSLATE_OPS_MAX;
    c->flush_every = tuning->flush_blocks;
    c->no_chains = tuning->no_chains;
    c->fetch.seg = SEG_CS;
    cpu->self = cpu;
    code_thunks_emit(cpu);
    code_cache_flush(cpu);
    return true;
}

void code_cache_free(SoftCpu *cpu)
{
    CodeCache *c = cpu->code;
    if (!c)
        return;
    if (c->rw != MAP_FAILED)
        munmap(c->rw, c->size);
    if (c->rx != MAP_FAILED)
        munmap((void *)(uintptr_t)c->rx, c->size);
    if (c->mirrored != MAP_FAILED)
        munmap(c->mirrored, c->mirrored_max * sizeof(*c->mirrored));
    g_free(c->by_id);
    g_free(c->translation);
    munmap(c, sizeof(*c));
    cpu->code = NULL;
}
